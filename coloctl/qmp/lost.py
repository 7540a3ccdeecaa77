"""Stand for the monitor of a QEMU that does not answer and never did: every call fails at once.

Made by `supervisor.discovery` in place of a `qmp.monitor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coloctl.errors import Unreachable
from coloctl.qmp.command import Command
from coloctl.qmp.monitor import Monitor


class LostMonitor(Monitor):
    """A monitor that is gone from the beginning; every command raises `Unreachable`."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node)
        self.why = why
        self._on_lost()

    async def execute(
        self, command: Command, deadline_s: float = 5.0, *, fd: int | None = None
    ) -> Any:
        """Raise `Unreachable`."""
        raise Unreachable(f"QEMU of node {self.node} cannot be sent {command.execute}: {self.why}.")

    async def rescue(self, command: Command, deadline_s: float = 1.0) -> Any:
        """Raise `Unreachable`."""
        return await self.execute(command, deadline_s)

    def probe(self, command: Command, answered: Callable[[], None]) -> bool:
        """Raise `Unreachable`."""
        raise Unreachable(f"QEMU of node {self.node} cannot be asked: {self.why}.")

    async def aclose(self) -> None:
        """Return at once: there is no connection."""
        return

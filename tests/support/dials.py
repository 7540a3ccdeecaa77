"""A way to an agent without ssh: a command of this machine that is it, or leads to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from coloctl.errors import HostOutOfReach
from coloctl.host.remote.dial import ended


@dataclass(frozen=True)
class PlainDial:
    """Implements `host.remote.dial.Dial`."""

    command: tuple[str, ...]
    name: str

    def argv(self) -> Sequence[str]:
        """See `Dial.argv`."""
        return self.command

    def failure(self, code: int | None, output: str) -> HostOutOfReach:
        """See `Dial.failure`."""
        return HostOutOfReach(ended(self.name, self.command[0], code, output))


#: The agent of this checkout, as another machine would run it.
AGENT = PlainDial((sys.executable, "-m", "coloctl.host.agent.main"), "hv2")

"""Represent a process that ended before it could be held: only its identity is left.

Made by `host.program` and `supervisor.discovery` where `Host.adopt` returned None.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from coloctl.clock import CLOCK
from coloctl.host.base import Death, DeathProof, Identity


class GoneProcess:
    """A process that is gone; implements `Process` with the answers that its end gives.

    Made only after `Host.adopt` returned None, which is a proof.
    """

    def __init__(self, identity: Identity, *, node: str = "") -> None:
        self.identity = identity
        self.argv: tuple[str, ...] = ()
        self.node = node
        self._at_s = CLOCK.now()

    @property
    def leader(self) -> Identity:
        return self.identity

    async def answers(self, speaker: Identity, files: Collection[Path] = ()) -> None:
        """Ignore the call: a process that is gone does not answer."""
        return

    async def wait(self) -> Death:
        """Return at once: the process is gone."""
        return Death(self.identity.pid, self._at_s, None)

    def alive(self) -> bool:
        """Return False: the process is gone."""
        return False

    def frozen(self) -> bool:
        """Return False: the process is gone."""
        return False

    def cpu_s(self) -> float | None:
        """Return None: it is unknown for ever."""
        return None

    def signal(self, signum: int) -> bool:
        """Return False: the process is not there to get it."""
        return False

    async def kill(self, deadline_s: float) -> DeathProof:
        """Return the proof: the process was gone before."""
        identity = self.identity
        return DeathProof(identity.pid, identity.start_time, "identity-gone", self._at_s, None)

    async def terminate(self, deadline_s: float) -> DeathProof:
        """Return the proof as `kill` does."""
        return await self.kill(deadline_s)

    def close(self) -> None:
        """Release nothing, because nothing is held."""
        return

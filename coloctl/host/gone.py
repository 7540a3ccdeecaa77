"""A process that ended before anybody could hold it: what is left is its name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from coloctl.clock import CLOCK
from coloctl.host.base import Death, DeathProof, Identity


class GoneProcess:
    """Stands where a process stood; every question about it has been answered by its end.

    Made only after `Host.adopt` answered None, which is a proof.
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
        """Do nothing: a process that is gone does not answer."""
        return

    async def wait(self) -> Death:
        """The process is gone."""
        return Death(self.identity.pid, self._at_s, None)

    def alive(self) -> bool:
        return False

    def frozen(self) -> bool:
        return False

    def cpu_s(self) -> float | None:
        """Unknown for ever."""
        return None

    def signal(self, signum: int) -> bool:
        """Nobody is there to get it."""
        return False

    async def kill(self, deadline_s: float) -> DeathProof:
        """It was gone before."""
        identity = self.identity
        return DeathProof(identity.pid, identity.start_time, "identity-gone", self._at_s, None)

    async def terminate(self, deadline_s: float) -> DeathProof:
        """As `kill`."""
        return await self.kill(deadline_s)

    def close(self) -> None:
        return None

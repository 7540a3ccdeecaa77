"""Represent a process that ended before it could be held: only its identity is left.

Made by `host.recorded_program` and `supervisor.discovery` where `Host.adopt` returned None.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from coloctl.clock import CLOCK
from coloctl.host.identity import Identity
from coloctl.host.process import file_bytes
from coloctl.host.records import Death, DeathProof, ThreadTimes
from coloctl.model.observation import Life


class GoneProcess:
    """A process that is gone; implements `Process` with the answers that its end gives.

    Made only after `Host.adopt` returned None, which is a proof.
    """

    def __init__(self, identity: Identity, *, node: str = "") -> None:
        self.identity = identity
        self.argv: tuple[str, ...] = ()
        self.node = node
        self._at_s = CLOCK.now()
        self._console: Path | None = None

    @property
    def leader(self) -> Identity:
        return self.identity

    @property
    def unplaced(self) -> str:
        return ""

    async def answers(self, speaker: Identity, files: Collection[Path] = ()) -> None:
        """Ignore the call: a process that is gone does not answer."""
        return

    async def wait(self) -> Death:
        """Return at once: the process is gone."""
        return Death(self.identity.pid, self._at_s, None)

    async def until_halted(self) -> Death:
        """Return at once as `wait` does."""
        return await self.wait()

    def life(self) -> Life:
        """Return DEAD: the process is gone."""
        return Life.DEAD

    def halted(self) -> bool:
        """Return True: the process is gone."""
        return True

    def alive(self) -> bool:
        """Return False: the process is gone."""
        return False

    def dying(self) -> bool:
        """Return False: its end is over."""
        return False

    def cpu_s(self) -> float | None:
        """Return None: it is unknown for ever."""
        return None

    def watch(self, *, threads: Sequence[int] | None = None, console: Path | None = None) -> None:
        """Note the console: it stays where its process has ended."""
        self._console = console or self._console

    def worked(self) -> ThreadTimes | None:
        """Return None: its threads are gone."""
        return None

    def console_bytes(self) -> int:
        """See `Process.console_bytes`."""
        return file_bytes(self._console)

    def signal(self, signum: int) -> bool:
        """Return False: the process is not there to get it."""
        return False

    async def kill(self, deadline_s: float) -> DeathProof:
        """Return the proof: the process was gone before."""
        identity = self.identity
        return DeathProof(identity.pid, identity.start_time, "identity-gone", self._at_s, None)

    async def halt(self, deadline_s: float) -> DeathProof:
        """Return the proof as `kill` does."""
        return await self.kill(deadline_s)

    async def terminate(self, deadline_s: float) -> DeathProof:
        """Return the proof as `kill` does."""
        return await self.kill(deadline_s)

    def close(self) -> None:
        """Release nothing, because nothing is held."""
        return

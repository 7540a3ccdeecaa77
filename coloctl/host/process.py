"""Hold processes by a pidfd: watch them, and end them with a proof.

Called by `host.launch` for children and by `host.adopting` for adopted processes; reads `procfs`. A
pidfd names one process for ever, so a signal can never reach a stranger that was given the same
pid. It becomes readable at the moment the process is gone; the periodic look at it is a safety net.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal as signals
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from coloctl.clock import CLOCK
from coloctl.errors import FencingFailed, PreconditionFailed
from coloctl.host.ending import ThreadWatch, free, is_dying
from coloctl.host.halted import is_halted, killed_by
from coloctl.host.identity import Identity, traits
from coloctl.host.memory_kill import MemoryKills
from coloctl.host.ready import until_readable
from coloctl.host.records import Death, DeathProof
from coloctl.model.observation import Life
from coloctl.procfs import read_stat
from coloctl.regular import open_regular
from coloctl.urgency import hasten_end, let_end

#: The part of a soft end's deadline that is reserved for the hard one. SIGKILL needs milliseconds.
HARD_RESERVE_S = 2.0

#: A task that waits for an end is mostly woken at once. Once in 742 failovers it was not: a QEMU
#: that was dead after 30 ms counted as alive for the 10 s of the fence's deadline, and clients
#: waited that long. So the descriptor is looked at again after so many seconds.
LOOK_AGAIN_S = 0.05
#: A process that is dying is looked at so often, and so many times, until it has come to a halt:
#: each of its threads needs a turn on a processor. Seconds.
HALT_LOOK_S, HALT_LOOKS = 0.0005, 400

#: How clock_gettime(2) is asked for the CPU clock of another process (linux/posix-timers.h).
_CPUCLOCK_SCHED = 2


def as_sentence(line: str) -> str:
    """Make a sentence of a line of QEMU's log: drop time and program name, add the full stop."""
    words = re.sub(r"^(\d{4}-\S+Z )?(\S*qemu\S*: )?", "", line).strip()
    return words if words.endswith(".") else f"{words}."


def tail(path: Path, lines: int = 20) -> str:
    """Return the last ``lines`` lines of a log (at most 64 KiB of it); "" where there is none."""
    try:
        with os.fdopen(open_regular(path), "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 65536))
            text = log.read(65536).decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def file_bytes(path: Path | None) -> int:
    """Return the size of a file, 0 where there is none."""
    if path is None:
        return 0
    try:
        return path.stat().st_size
    except OSError:
        return 0


def identity_of(pid: int) -> Identity | None:
    """Read what distinguishes the process that has ``pid`` now from all others; None: there is
    none.
    """
    stat = read_stat(pid)
    return None if stat is None else Identity(pid, stat.start_time, **traits(pid))


def is_readable(fd: int, timeout_s: float = 0.0) -> bool:
    """Return whether a descriptor is readable, at the latest after ``timeout_s``."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


class LocalProcess:
    """A process of this kernel. `launch.hold` and `adopt` make it."""

    def __init__(
        self, identity: Identity, pidfd: int, argv: Sequence[str], *, node: str, launched: bool
    ) -> None:
        self.identity = identity
        self.argv = tuple(argv)
        self.node = node
        self._pidfd = pidfd
        self._launched, self._hastened = launched, False
        self._memory: MemoryKills | None = None
        self._death: Death | None = None
        self._halt: Death | None = None  #: it runs no more, and the kernel still ends it
        self._release = weakref.finalize(self, os.close, pidfd)

    def __repr__(self) -> str:
        return f"<LocalProcess {self.identity.pid} {self.node or self.argv[:1]}>"

    def alive(self) -> bool:
        """Return whether the process still exists; a zombie does not count.

        Raises `ValueError` when the hold was closed before a death was seen.
        """
        if self._death is None and self._release.alive and is_readable(self._pidfd):
            self._note_death(self._pidfd)
        if self._death is None and not self._release.alive:
            raise ValueError(f"the hold on process {self.identity.pid} was closed")
        return self._death is None

    def halted(self) -> bool:
        """See `Process.halted`; noticed while `until_halted` or `halt` waits. Raises as `alive`."""
        return self._halt is not None or not self.alive()

    def life(self) -> Life:
        """Return the state of the process; UNKNOWN once the hold on it was closed."""
        try:
            if self.halted():
                return Life.DEAD
        except ValueError:
            return Life.UNKNOWN
        return Life.STOPPED if self._stopped() else Life.ALIVE

    @property
    def seen_dying(self) -> bool:
        """True where `wait` has noticed its end, or a SIGKILL was sent to it; nothing is read."""
        return self._hastened and self._death is None

    def dying(self) -> bool:
        """See `Process.dying`. Exact once a peer has lost its connection to the process by its end.

        The kernel marks each thread before the process's files are closed.
        """
        if self._death is not None or not self._release.alive or not self.alive():
            return False
        return self._hastened or is_dying(self.identity.pid)

    def _stopped(self) -> bool:
        stat = read_stat(self.identity.pid)
        return (
            stat is not None
            and stat.start_time == self.identity.start_time
            and stat.state in ("T", "t")
        )

    def cpu_s(self) -> float | None:
        """Return the CPU time of all its threads so far, to the nanosecond; None once it is gone.

        ``/proc/PID/stat`` counts hundredths of a second: a starved process would seem to stand
        still.
        """
        if not self.alive():
            return None
        try:
            return time.clock_gettime(~self.identity.pid << 3 | _CPUCLOCK_SCHED)
        except OSError:  # it ended in between
            return None

    def signal(self, signum: int) -> bool:
        """Send the signal; returns False where the process was gone already.

        Raises `PreconditionFailed` when this user may not signal it.
        """
        if not self.alive():
            return False
        try:
            signals.pidfd_send_signal(self._pidfd, signum)
            if signum == signals.SIGKILL:
                self._hasten()
        except ProcessLookupError:
            return False
        except PermissionError:
            raise PreconditionFailed(
                f"Process {self.identity.pid} belongs to another user and may not be signalled.",
                hint="run coloctl as the user that started the pair",
            ) from None
        return True

    def _hasten(self) -> None:
        """Let this process, which is dying, end sooner."""
        if not self._hastened and self._release.alive:
            self._hastened = True
            hasten_end(self.identity.pid)
            if self._memory is not None:
                self._memory.look()

    def watch_memory(self) -> None:
        """Notice from here on whether the kernel kills the process for its memory."""
        self._memory = self._memory or MemoryKills(self.identity.pid)

    async def wait(self) -> Death:
        """Wait until the process is gone; any number of tasks may wait and be cancelled."""
        if self.alive():
            await self._watch()
        assert self._death is not None
        return self._death

    async def until_halted(self) -> Death:
        """See `Process.until_halted`."""
        if self.alive() and self._halt is None:
            await self._watch(early=True)
        death = self._death or self._halt
        assert death is not None
        return death

    async def _watch(self, *, early: bool = False) -> None:
        """Wait until the process is gone, or, ``early``, until a signal has halted it."""
        looks = 0
        with ThreadWatch(self.identity.pid, self._pidfd) as ending:
            while not is_readable(ending.pidfd):
                if ending.look():
                    self._hasten()
                near = early and self._hastened and looks < HALT_LOOKS
                if early and self._hastened and self._note_halt():
                    return
                looks += near
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HALT_LOOK_S if near else LOOK_AGAIN_S):
                        await until_readable(ending.fileno())
            self._note_death(ending.pidfd)

    def wait_blocking(self, deadline_s: float) -> bool:
        """Return whether the process was gone within ``deadline_s``; for threads, not for event
        loops.
        """
        if self.alive():
            is_readable(self._pidfd, deadline_s)
        return not self.alive()

    async def kill(self, deadline_s: float) -> DeathProof:
        """Kill the process by SIGKILL, which also ends a stopped one.

        Raises `FencingFailed` when the kernel does not report its end within ``deadline_s``.
        """
        return await self._end(signals.SIGKILL, deadline_s)

    async def halt(self, deadline_s: float) -> DeathProof:
        """See `Process.halt`. Raises `FencingFailed`."""
        if self._halt is not None and self.alive():
            return self._proof("already-dead")
        return await self._end(signals.SIGKILL, deadline_s, early=True)

    async def terminate(self, deadline_s: float) -> DeathProof:
        """End the process, by SIGTERM if that is enough; raises as `kill`."""
        if self._stopped():  # a stopped process gets SIGTERM only when it is continued
            return await self.kill(deadline_s)
        reserve = min(HARD_RESERVE_S, deadline_s / 2)
        try:
            return await self._end(signals.SIGTERM, deadline_s - reserve)
        except FencingFailed:
            return await self._end(signals.SIGKILL, reserve)

    def close(self) -> None:
        """Close the pidfd; the process is left alone."""
        self._release()

    async def _end(
        self, signum: signals.Signals, deadline_s: float, *, early: bool = False
    ) -> DeathProof:
        try:
            if not self.signal(signum):
                return self._proof("already-dead")
            if signum == signals.SIGKILL and not early and self._release.alive:
                hasten_end(self.identity.pid)  # a halt may have lowered it
                free(self._pidfd)
        except PreconditionFailed as error:
            raise FencingFailed(self.node, error.message, hint=error.hint) from None
        try:
            async with asyncio.timeout(deadline_s):
                await (self.until_halted() if early else self.wait())
        except TimeoutError:
            if self.alive():
                raise FencingFailed(
                    self.node,
                    f"Process {self.identity.pid} got {signum.name} and is not gone"
                    f" after {deadline_s:g} s.",
                    hint="a process stuck in the kernel (state D) cannot be killed:"
                    " power its host off, then confirm that it is off",
                ) from None
        return self._proof(signum.name.lower())

    def _proof(self, how: str) -> DeathProof:
        # A signal may find no process an instant before the descriptor becomes readable.
        death = self._death or self._halt or self._note_death(self._pidfd)
        return DeathProof(
            self.identity.pid, self.identity.start_time, how, death.at_s, death.exit_code
        )

    def _note_halt(self) -> bool:
        """Return whether a signal has brought the process to a halt, and note that.

        One that ends by itself is left to the kernel's report: its connections are closed by then,
        so that its last events are read before its death is handled.
        """
        pid = self.identity.pid
        if self._halt is None and is_halted(pid) and (signum := killed_by(pid)):
            let_end(pid)
            self._halt = Death(pid, CLOCK.now(), -signum, self._memory_limit(-signum))
        return self._halt is not None

    def _note_death(self, pidfd: int) -> Death:
        if self._death is None:
            code = _exit_code(pidfd, reap=self._launched)
            self._death = Death(self.identity.pid, CLOCK.now(), code, self._memory_limit(code))
            self._release()
        return self._death

    def _memory_limit(self, code: int | None) -> int | None:
        """Return the limit of memory at which the kernel killed it; None where it did not."""
        limit = self._memory.look() if self._memory is not None else None
        return limit if code in (None, -signals.SIGKILL) else None


def _exit_code(pidfd: int, *, reap: bool) -> int | None:
    """Return the exit code of a dead child, which is reaped if asked; None for another's child."""
    options = os.WEXITED | os.WNOHANG | (0 if reap else os.WNOWAIT)
    try:
        info = os.waitid(os.P_PIDFD, pidfd, options)
    except ChildProcessError:
        return None
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def command_line(pid: int) -> list[str]:
    """Read the command line that ``pid`` shows: a description, never a proof."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]]

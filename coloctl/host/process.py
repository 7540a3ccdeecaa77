"""Hold processes by a pidfd: adopt them by identity, watch them, end them with a proof.

Called by `host.launch` for children and by `host.program` for adopted processes; reads `procfs`. A
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
from coloctl.host.identity import Identity, pid_namespace, traits
from coloctl.host.memory_kill import MemoryKills
from coloctl.host.ready import until_readable
from coloctl.host.records import Death, DeathProof
from coloctl.model.observation import Life
from coloctl.procfs import boot_id, machine_id, read_stat
from coloctl.regular import open_regular
from coloctl.urgency import hasten_end

#: The part of a soft end's deadline that is reserved for the hard one. SIGKILL needs milliseconds.
HARD_RESERVE_S = 2.0

#: A task that waits for an end is mostly woken at once. Once in 742 failovers it was not: a QEMU
#: that was dead after 30 ms counted as alive for the 10 s of the fence's deadline, and clients
#: waited that long. So the descriptor is looked at again after so many seconds.
LOOK_AGAIN_S = 0.05

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


def _readable(fd: int, timeout_s: float = 0.0) -> bool:
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
        self._release = weakref.finalize(self, os.close, pidfd)

    def __repr__(self) -> str:
        return f"<LocalProcess {self.identity.pid} {self.node or self.argv[:1]}>"

    def alive(self) -> bool:
        """Return whether the process still exists; a zombie does not count.

        Raises `ValueError` when the hold was closed before a death was seen.
        """
        if self._death is None and self._release.alive and _readable(self._pidfd):
            self._note_death(self._pidfd)
        if self._death is None and not self._release.alive:
            raise ValueError(f"the hold on process {self.identity.pid} was closed")
        return self._death is None

    def life(self) -> Life:
        """Return the state of the process; UNKNOWN once the hold on it was closed."""
        try:
            if not self.alive():
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
            free(self._pidfd)
            if self._memory is not None:
                self._memory.look()

    def watch_memory(self) -> None:
        """Notice from here on whether the kernel kills the process for its memory."""
        self._memory = self._memory or MemoryKills(self.identity.pid)

    async def wait(self) -> Death:
        """Wait until the process is gone; any number of tasks may wait and be cancelled."""
        if self.alive():
            with ThreadWatch(self.identity.pid, self._pidfd) as ending:
                while not _readable(ending.pidfd):
                    if ending.look():
                        self._hasten()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_AGAIN_S):
                            await until_readable(ending.fileno())
                self._note_death(ending.pidfd)
        assert self._death is not None
        return self._death

    def wait_blocking(self, deadline_s: float) -> bool:
        """Return whether the process was gone within ``deadline_s``; for threads, not for event
        loops.
        """
        if self.alive():
            _readable(self._pidfd, deadline_s)
        return not self.alive()

    async def kill(self, deadline_s: float) -> DeathProof:
        """Kill the process by SIGKILL, which also ends a stopped one.

        Raises `FencingFailed` when the kernel does not report its end within ``deadline_s``.
        """
        return await self._end(signals.SIGKILL, deadline_s)

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

    async def _end(self, signum: signals.Signals, deadline_s: float) -> DeathProof:
        try:
            if not self.signal(signum):
                return self._proof("already-dead")
        except PreconditionFailed as error:
            raise FencingFailed(self.node, error.message, hint=error.hint) from None
        try:
            async with asyncio.timeout(deadline_s):
                await self.wait()
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
        death = self._death or self._note_death(self._pidfd)
        return DeathProof(
            self.identity.pid, self.identity.start_time, how, death.at_s, death.exit_code
        )

    def _note_death(self, pidfd: int) -> Death:
        if self._death is None:
            limit = self._memory.look() if self._memory is not None else None
            code = _exit_code(pidfd, reap=self._launched)
            limit = limit if code in (None, -signals.SIGKILL) else None
            self._death = Death(self.identity.pid, CLOCK.now(), code, limit)
            self._release()
        return self._death


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


def adopt(identity: Identity, *, node: str = "") -> LocalProcess | None:
    """Hold the process of ``identity``; None: it has ended (a zombie has), or its pid was reused.

    None is a proof of death: no process of an earlier boot lives. A case of doubt raises
    `PreconditionFailed`: a number of another machine or pid namespace, or a process whose user or
    program is not the recorded one.
    """
    if identity.pid <= 0:
        return None
    # The machine comes first: another machine has another boot, which proves nothing here.
    if identity.machine and identity.machine != machine_id():
        raise PreconditionFailed(
            f"Process {identity.pid} was recorded on another machine (its id is"
            f" {identity.machine}, this one's {machine_id() or 'unknown'}).",
            hint="run coloctl on the machine that started the pair; where that is gone for good,"
            f" `coloctl stop PAIR --force --without {node or 'NODE'}` gives the process up",
        )
    if identity.boot and identity.boot != boot_id():
        return None
    if identity.namespace and identity.namespace != pid_namespace():
        raise PreconditionFailed(
            f"Process {identity.pid} was recorded in another pid namespace ({identity.namespace}).",
            hint="run coloctl in the container that started the pair; where that is gone, so is"
            " the process: remove the pair's state folder",
        )
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise PreconditionFailed(
            f"Process {identity.pid} cannot be held: {error.strerror}."
        ) from None
    # Only now is the start time worth comparing: from here on the pidfd cannot change its process.
    found = identity_of(identity.pid)
    if found is None and not _readable(pidfd):
        os.close(pidfd)
        raise _hidden(identity.pid)
    if found != identity or _readable(pidfd):
        os.close(pidfd)
        return None
    if strange := identity.differs(found):
        os.close(pidfd)
        raise PreconditionFailed(
            f"Process {identity.pid} has the number of the QEMU of node {node}, but {strange}.",
            hint=f"look at it with `ps -fp {identity.pid}`; it is neither adopted nor ended",
        )
    argv = command_line(identity.pid)
    return LocalProcess(identity, pidfd, argv, node=node, launched=False)


def _hidden(pid: int) -> PreconditionFailed:
    return PreconditionFailed(
        f"Process {pid} exists, but /proc does not show whether it is the one that was started.",
        hint="run coloctl as the user that started the pair (/proc is mounted with hidepid)",
    )


def command_line(pid: int) -> list[str]:
    """Read the command line that ``pid`` shows: a description, never a proof."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]]

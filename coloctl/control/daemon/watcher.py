"""Start a supervisor again that was killed or broke; otherwise do nothing at all.

Started by `control.daemon.spawn` as a program; `control.acts` asks it for a supervisor's watcher.

A process of its own, cheap because it imports the standard library only and sleeps nearly always.
It holds the listening control socket, so that clients that come while there is no supervisor
wait in the socket's queue and are answered by the next. No supervisor needs it: one whose watcher
is gone goes on. A supervisor that hangs is killed first and then replaced, so that there are never
two. Now and then it bounds the logs of the pair, also while its supervisor is frozen or cannot be
started.

``python -m coloctl.control.daemon.watcher FOLDER PROGRAM ARGUMENT...`` keeps the program running
for the pair in FOLDER. The program inherits the descriptors that the watcher inherited.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from coloctl import bounded, procfs
from coloctl.control.daemon.pulse import Pulse
from coloctl.urgency import hasten_start

#: Waits before the first, second, ... new supervisor, seconds: QEMU is not watched meanwhile.
BACKOFF_S = (0.0, 0.2, 1.0, 3.0, 10.0)
#: A supervisor that lived longer than this has nothing to do with the end of the one before it.
STEADY_S = 60.0
#: Waits after the first, second, ... start in a row that the system refused (no memory, no process,
#: a program that is being replaced); the last one is repeated without an end, seconds.
REFUSED_S = (0.2, 1.0, 3.0, 10.0)
#: Exit code of a program that could not be started, as a shell has it.
NOT_STARTED = 127
#: How often the logs are bounded when the supervisor, which does that too, may not; seconds.
BOUND_PERIOD_S = 10.0
#: How often the supervisor is looked at, seconds.
LOOK_PERIOD_S = 1.0
#: The supervisor's own word that it left on purpose; others stand for errors or signals.
ORDERLY = 0

#: This module's name on a command line, now and in an earlier version of coloctl: a pair that was
#: started before an update has a watcher of the earlier name.
_MODULES = frozenset((b"coloctl.control.daemon.watcher", b"coloctl.control.watcher"))

_FORWARDED = (signal.SIGTERM, signal.SIGINT)


def watch(folder: Path, argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Run the program until it has ended for good; return its exit code, as a shell would.

    It is started again when it ended by a signal or an error and left something in ``folder`` that
    needs a supervisor, at most ``len(BACKOFF_S)`` times in a row. A start that the system refuses
    is no end of the program: it is tried again for as long as it takes.
    """
    keeper = _Keeper(argv, folder, say)
    tries = refused = 0
    while True:
        began = time.monotonic()
        if refusal := keeper.start():
            if keeper.asked() or not _needs_one(folder):
                say(f"The supervisor cannot be started: {refusal}.")
                return NOT_STARTED
            wait_s = REFUSED_S[min(refused, len(REFUSED_S) - 1)]
            refused += 1
            say(f"The supervisor cannot be started: {refusal}; the next try comes in {wait_s} s.")
            keeper.pause(wait_s)
            continue
        refused = 0
        if tries:  # a failover may be under way, and half of a second supervisor's start is imports
            hasten_start(keeper.last)
        code = keeper.wait()
        if code == ORDERLY or keeper.asked() or not _needs_one(folder):
            return code
        if time.monotonic() - began >= STEADY_S:
            tries = 0
        how = f"was killed by signal {code - 128}" if code > 128 else f"ended with code {code}"
        if tries == len(BACKOFF_S):
            say(
                f"The supervisor (process {keeper.last}) {how}, after {tries} in a row; it "
                f"is not started again. `coloctl start --adopt` takes the pair over."
            )
            return code
        wait_s = BACKOFF_S[tries]
        say(f"The supervisor (process {keeper.last}) {how}; the next begins in {wait_s} s.")
        keeper.pause(BACKOFF_S[tries])
        if keeper.asked():
            return code
        tries += 1


class _Keeper:
    """Runs the program, and hands the signals on that ask it to end."""

    def __init__(self, argv: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
        self._told = False
        self.last = 0  #: pid of the program that was started last
        self._argv = list(argv)
        self._logs = bounded.pair_logs(folder)
        self._socket = folder / "control.sock"
        self._say = say
        self._running = False
        for number in _FORWARDED:
            signal.signal(number, self._forward)

    def asked(self) -> bool:
        """Return whether the end was asked for."""
        return self._told

    def start(self) -> str:
        """Start the program; answer why the system refused that, empty where it runs."""
        # Blocked, so that no signal falls between the start and the note of the new pid.
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        try:
            self.last = os.posix_spawn(self._argv[0], self._argv, os.environ, setsigmask=())
            self._running = True
        except OSError as error:
            return f"{self._argv[0]}: {error.strerror}"
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        return ""

    def wait(self) -> int:
        """Wait for the program's end; return its code, 128 and the signal's number for a signal."""
        with contextlib.suppress(OSError):  # no descriptor is left: it is waited for all the same
            fd = os.pidfd_open(self.last)
            try:
                self._wait_for(fd)
            finally:
                os.close(fd)
        os.waitid(os.P_PID, self.last, os.WEXITED | os.WNOWAIT)
        self._running = False  # before it is reaped: no other process has its pid until then
        return _shell_code(os.waitpid(self.last, 0)[1])

    def _wait_for(self, pidfd: int) -> None:
        """Return when the program has ended; one that stands still is killed for that."""
        poll, pulse = select.poll(), Pulse(self.last, self._socket)
        poll.register(pidfd, select.POLLIN)
        bounded_s = looked_s = time.monotonic()
        try:
            while not poll.poll(LOOK_PERIOD_S * 1000):
                now_s = time.monotonic()
                awake_s, looked_s = min(now_s - looked_s, 2 * LOOK_PERIOD_S), now_s
                if now_s - bounded_s >= BOUND_PERIOD_S:
                    bounded.bound_all(self._logs)
                    bounded_s = now_s
                if (why := pulse.look(awake_s)) and not self._told:
                    self._say(f"The supervisor (process {self.last}) {why}; it is killed.")
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    poll.poll()
        finally:
            pulse.close()

    def pause(self, seconds: float) -> None:
        """Wait that long, or until the end is asked for."""
        bounded.bound_all(self._logs)
        end = time.monotonic() + seconds
        while not self._told and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _forward(self, number: int, _frame: object) -> None:
        self._told = True
        if self._running:
            os.kill(self.last, number)


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _needs_one(folder: Path) -> bool:
    """Return whether the pair's folder is there: an orderly end removes it."""
    return (folder / "journal.jsonl").exists()


def watcher_of(pid: int) -> int | None:
    """Find the process that would start the supervisor ``pid`` again; None where none does.

    It is the supervisor's parent, runs as this user, and says of itself that it is a watcher.
    """
    stat = procfs.read_stat(pid)
    if stat is None:
        return None
    try:
        words = Path(f"/proc/{stat.parent}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    watches = not _MODULES.isdisjoint(words) and procfs.ours(stat.parent)
    return stat.parent if watches else None


def main() -> int:
    """Run the program."""
    folder, *argv = sys.argv[1:]

    def say(sentence: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        # A full disk silences it, and no more. Unbuffered: what sys.stderr keeps and cannot write
        # at the end makes Python 3.12 and later exit with 120 in place of the supervisor's code.
        with contextlib.suppress(OSError):
            os.write(2, f"{stamp} WATCHER {sentence}\n".encode(errors="replace"))

    return watch(Path(folder), argv, say)


if __name__ == "__main__":
    sys.exit(main())

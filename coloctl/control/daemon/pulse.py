"""Notice a supervisor that stands still, for the watcher that starts it again.

Called by `control.daemon.watcher` at every turn of its wait; standard library only. Two things
tell: the
kernel says that the process is stopped (SIGSTOP, Ctrl-Z), or it no longer greets who connects to
its control socket. Only time in which the watcher itself was awake counts: on a machine that stands
still as a whole nothing is the matter with the supervisor.

Invariant: one that has never greeted is left alone: it may be taking over what another one left.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path

from coloctl import procfs

#: A supervisor that is stopped for so long is ended, seconds. It decides about failovers.
STOPPED_S = 5.0
#: One that does not greet for so long, seconds. The longest that its loop was seen to be busy on a
#: machine with both cores saturated is less than a second; swapping takes its time.
SILENT_S = 30.0
#: From one greeting to the next that is asked for, seconds.
ASK_PERIOD_S = 5.0


class Pulse:
    """The signs of life of the supervisor ``pid``, which serves ``path``."""

    def __init__(self, pid: int, path: Path) -> None:
        self._pid, self._path = pid, path
        self._stopped_s = 0.0
        self._silent_s = 0.0
        self._rest_s = 0.0
        self._greeted = False
        self._asked: socket.socket | None = None

    def look(self, awake_s: float) -> str:
        """Look once, ``awake_s`` after the last time; say why it must be ended, or nothing."""
        stat = procfs.read_stat(self._pid)
        self._stopped_s = self._stopped_s + awake_s if stat and stat.state == "T" else 0.0
        if self._stopped_s >= STOPPED_S:
            return f"has been stopped for {self._stopped_s:.0f} s"
        if self._asked is None:
            self._rest_s -= awake_s
            if self._rest_s <= 0:
                self._ask()
            return ""
        if _readable(self._asked):
            self.close()
            self._greeted, self._silent_s, self._rest_s = True, 0.0, ASK_PERIOD_S
            return ""
        self._silent_s += awake_s
        if self._greeted and self._silent_s >= SILENT_S:
            return f"has not greeted for {self._silent_s:.0f} s"
        return ""

    def _ask(self) -> None:
        """Connect; where that cannot be done, nothing is known."""
        asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        asked.setblocking(False)
        with contextlib.suppress(OSError):
            asked.connect(os.fspath(self._path))
            self._asked = asked
            return
        asked.close()

    def close(self) -> None:
        """Close the connection."""
        if self._asked is not None:
            self._asked.close()
            self._asked = None


def _readable(asked: socket.socket) -> bool:
    """Return whether it greeted or closed the connection: both need a supervisor that runs."""
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    return bool(poll.poll(0))

"""Pairs whose supervisor and watcher were killed: both QEMUs run on, and nobody watches them."""

from __future__ import annotations

import os
import select
import signal

from support.moments import Mortal

from coloctl.control.daemon.watcher import watcher_of


def end(pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    """The process is gone."""
    assert pid is not None
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, number)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(20_000)
    finally:
        os.close(fd)


def leave_alone(pair: Mortal) -> None:
    """Neither a supervisor nor its watcher is left."""
    supervisor = pair.view()["supervisor_pid"]
    end(watcher_of(supervisor))
    end(supervisor)

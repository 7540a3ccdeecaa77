"""Let what a guest waits for run before programs that only compute, where the kernel allows it.

Called by `control.daemon.serve` and `host.agent.main` once they begin to beat, by `host.blocking`
in its threads, by `host.process` and `host.ending` for a process that ends, and by
`control.daemon.watcher` and `control.daemon.early` for a supervisor in the place of a killed one,
and by `host.remote.connection` for ssh. A beat that comes late looks like a machine that fell
silent: at a load of 18 on two processors an agent of normal priority was late by more than 120 ms,
and a pair lost its protection.

A machine with one processor is left as it is. Real time would keep sshd from carrying what the
agent reports: seen in a Debian under TCG, where ssh lost the agent after 3 s, again and again.

Invariant: no process that is started afterwards has this priority, but for ssh, and no thread that
does not ask for it: the guests, and programs that compute, run as before.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

#: Low priorities of real time: before every normal program, after others of real time. Corosync
#: runs so by default, too (corosync.conf(5), ``sched_rr``). What beats goes before what ends.
_ENDING, _BEATING = 1, 2
#: Where real time is not allowed and a niceness is.
_NICE = -11
#: The lowest niceness.
_LAST = 19

#: Whether the thread of this process that beats was raised.
_raised = threading.Event()


def hurry() -> str:
    """Raise the priority of the calling thread; return what it is now, empty: as before.

    It takes CAP_SYS_NICE, the kernel's leave for real time in this control group, and a second
    processor for all that the thread itself depends on.
    """
    if len(os.sched_getaffinity(0)) < 2:
        return ""
    _raised.set()
    try:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(_BEATING))
    except OSError:
        return _nicer()
    return "real time"


def hasten_start(pid: int) -> None:
    """Raise the priority of a process that has begun; harmless where that is not allowed.

    Not to real time, which it asks for by itself. Nor that of what it starts. Where the kernel
    weighs sessions against each other, and the caller leads its own, that is weighed so until
    `has_started`: niceness has no effect beyond a session there. At a load of 7 on two processors
    the imports of a supervisor took 2.0 s in a session of normal weight, and 0.65 s with this.
    """
    if len(os.sched_getaffinity(0)) >= 2:
        with contextlib.suppress(OSError):
            _raise(pid)
        if os.getsid(0) == os.getpid():
            _weigh(pid, _NICE)


def hasten_session(pid: int) -> None:
    """Weigh the session that a process leads as `hasten_start` does, for as long as it lives.

    For ssh, which carries what an agent reports: at a load of 8 on two processors an agent was
    reached in 0.9 s with an ssh of normal weight, and in 0.7 s with this.
    """
    with contextlib.suppress(OSError):
        if len(os.sched_getaffinity(0)) >= 2 and os.getsid(pid) == pid:
            _weigh(pid, _NICE)


def has_started() -> None:
    """Give the session of this process the normal weight again, if `hasten_start` raised that."""
    with contextlib.suppress(OSError):
        if _autogroup(os.getpid()).read_text().endswith(f" nice {_NICE}\n"):
            _weigh(os.getpid(), 0)


def join_start() -> None:
    """Raise the calling thread as `hasten_start` raised its process; without that, do nothing.

    A thread begins with normal priority, because what the main thread starts does.
    """
    if os.getpriority(os.PRIO_PROCESS, os.getpid()) == _NICE:
        with contextlib.suppress(OSError):
            _raise(threading.get_native_id())


def keep_up() -> None:
    """Raise the calling thread as `hurry` raised the one that beats; without that, do nothing.

    For a thread that a failover waits for. With two guests on two processors one of normal priority
    did not run for 15 ms, which is as long as all the rest of a fence.
    """
    if _raised.is_set():
        hurry()


def as_an_end() -> None:
    """Raise the calling thread as `hasten_end` raises a process, for work on the end of one."""
    with contextlib.suppress(OSError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(_ENDING))


def _nicer() -> str:
    try:
        _raise(0)
    except OSError:
        return ""
    return f"niceness {_NICE}"


def _raise(pid: int) -> None:
    os.sched_setscheduler(pid, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, pid, _NICE)


def _weigh(pid: int, nice: int) -> None:
    """Weigh the session of a process by a niceness (sched(7), autogroup), where there is that."""
    with contextlib.suppress(OSError):
        _autogroup(pid).write_text(f"{nice}")


def _autogroup(pid: int) -> Path:
    return Path(f"/proc/{pid}/autogroup")


def hasten_end(pid: int) -> None:
    """Raise the priority of a process that was sent SIGKILL; harmless where that is not allowed.

    The kernel reports its death when its memory is freed, and that is its last thread's own work.
    512 MiB took 440 to 890 ms at load 14 on two processors, and 104 to 120 ms with this.
    """
    _schedule(pid, os.SCHED_RR, _ENDING)


def let_end(pid: int) -> None:
    """Give such a process the lowest normal priority: it runs no more, and its memory can wait.

    A failover needs the processors meanwhile: what frees 300 MiB keeps one busy for 10 to 15 ms.
    `hasten_end` raises it again.
    """
    _schedule(pid, os.SCHED_OTHER, 0, nice=_LAST)
    with contextlib.suppress(OSError):
        if os.getsid(pid) == pid:
            _weigh(pid, _LAST)


def _schedule(pid: int, policy: int, priority: int, nice: int | None = None) -> None:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # in the way of a failover
            with contextlib.suppress(OSError):
                os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
                if nice is not None:
                    os.setpriority(os.PRIO_PROCESS, int(thread), nice)

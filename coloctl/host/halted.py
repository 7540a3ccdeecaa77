"""Prove that a process can run no instruction any more, before the kernel has freed its memory.

Called by `host.process`, which reports such a process as dead, and by `host.ending`.

The kernel reports the end of a process when its memory is freed: 400 MiB took 87 ms at load 9 on
two processors, and a larger guest takes longer, which the clients of a failover would wait for.
But a thread that has begun to exit never returns to its program (PF_EXITING is set by do_exit,
kernel/exit.c), so a process is at its end when each of its threads has begun: 3 ms after SIGKILL at
that load. Threads of the kernel that work for it, as io_uring's, are among its threads.

Such a process still has its files open, and its locks. Writes that the kernel took before are still
done, to its own images, as after any death.

Invariant: what cannot be read proves nothing.
"""

from __future__ import annotations

import contextlib
import os

#: A task that exits, in the flags of proc_pid_stat(5) (include/linux/sched.h).
PF_EXITING = 0x4

#: Fields of proc_pid_stat(5), counted from the one after the name, which is number 3.
_FLAGS, _EXIT_CODE = 6, 49
#: The signal in a status of wait(2).
_SIGNAL = 0x7F


def is_halted(pid: int) -> bool:
    """Return whether each thread of the process has begun to exit; False: that is not known.

    Only a thread that runs can start another one. So once all that were listed exit, and a second
    list names no other, none is left that can.
    """
    exiting: set[str] = set()
    try:
        while tasks := set(os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208 - in a failover's way
            if tasks <= exiting:
                return True
            if not all(exits(f"{pid}/task/{task}") for task in tasks - exiting):
                return False
            exiting |= tasks
    except OSError:  # it is gone, which the kernel reports
        pass
    return False


def exits(task: str) -> bool:
    """Return whether a task has begun to exit: a path below /proc. Raises OSError."""
    return bool(int(_fields(task)[_FLAGS]) & PF_EXITING)


def killed_by(pid: int) -> int:
    """Return the signal that ended a process that is halted; 0: none did, or it is not shown."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(_fields(str(pid))[_EXIT_CODE]) & _SIGNAL
    return 0


def _fields(task: str) -> list[bytes]:
    file = os.open(f"/proc/{task}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(file, 4096)
    finally:
        os.close(file)
    return text[text.rindex(b")") + 2 :].split()

"""End the processes that run in a lab's namespaces.

Called by `lab.network` when a lab goes down.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable

from coloctl.errors import LabError
from coloctl.lab import netns

#: How long processes get to leave by themselves, and then to die of SIGKILL.
SOFT_WAIT_S = 2.0
HARD_WAIT_S = 5.0


def evict(namespaces: Iterable[str]) -> list[str]:
    """End every process in the namespaces; return a sentence for each that was asked to go.

    SIGTERM first, SIGKILL to those who stay. Raises `LabError` when the caller runs there itself,
    or when a process survives both.
    """
    deeds: list[str] = []
    homes = tuple(namespaces)
    for number, wait_s in ((signal.SIGTERM, SOFT_WAIT_S), (signal.SIGKILL, HARD_WAIT_S)):
        with contextlib.ExitStack() as handles:
            told: list[int] = []
            for (pid, command), home in _tenants(homes).items():
                handle = _tell(pid, home, number, handles)
                if handle is not None:
                    told.append(handle)
                    deeds.append(f"{command} ({pid}) in {home} got {number.name}.")
            _wait_gone(told, wait_s)
    left = _tenants(homes)
    if left:
        listed = ", ".join(f"{command} ({pid})" for pid, command in left)
        raise LabError(f"Processes in the lab will not end: {listed}.")
    return deeds


def _tenants(homes: Iterable[str]) -> dict[tuple[int, str], str]:
    found = {
        (pid, command): home for home in homes for pid, command in netns.processes(home).items()
    }
    if any(pid == os.getpid() for pid, _ in found):
        raise LabError(
            "This command runs inside the lab that it should take down.",
            hint="run it outside the lab's namespaces",
        )
    return found


def _tell(pid: int, home: str, number: signal.Signals, handles: contextlib.ExitStack) -> int | None:
    """Send the signal and return a pidfd; None when the process left or is another by now."""
    try:
        handle = os.pidfd_open(pid)
        handles.callback(os.close, handle)
        if not netns.runs_in(pid, home):
            return None
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return None
    return handle


def _wait_gone(handles: Iterable[int], wait_s: float) -> None:
    """Wait until all the pidfds' processes are dead, or the time is over."""
    poll = select.poll()
    waiting = set(handles)
    for handle in waiting:
        poll.register(handle, select.POLLIN)
    end = time.monotonic() + wait_s
    while waiting and (left_s := end - time.monotonic()) > 0:
        for handle, _ in poll.poll(left_s * 1000):
            poll.unregister(handle)
            waiting.discard(handle)

"""Run what a disk may hold up in a thread of its own, so that no other work waits for that disk.

Called by `host.local_files`, `host.resource_use`, `ha.arbiter` and `supervisor.loop`, and by
`control.daemon.serve` and `host.agent.main`, which keep threads ready; calls `host.durable`. The
threads of `asyncio.to_thread` are few, and a process that ends waits for each of them: a disk that
hangs would keep both from all other work.

A thread that has done its job waits for the next one. To start one takes its first turn on a
processor, for which the event loop waits as well: 5 ms and more beside two guests on two
processors, three times in a failover.

Invariant: a write that was given up does not replace its file later, over what was written since. A
job never waits for another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from coloctl.host import durable
from coloctl.urgency import keep_up

T = TypeVar("T")

#: So many threads wait for jobs; what needs more at once starts more, which end afterwards. A
#: failover needs three: claim, number beside the image, and the locks of the lost node's image.
READY = 4


class _Worker(threading.Thread):
    """A thread that does one job after the other."""

    def __init__(self) -> None:
        super().__init__(name="aside", daemon=True)
        self.jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def run(self) -> None:
        """Do jobs until enough other threads wait for one."""
        while True:
            keep_up()
            self.jobs.get()()
            if len(_waiting) >= READY:
                return
            _waiting.append(self)


_waiting: deque[_Worker] = deque()
os.register_at_fork(after_in_child=_waiting.clear)  # a child has none of these threads


def keep_ready() -> None:
    """Start the threads that wait for jobs, so that no failover has to; raised as `keep_up` does.

    Raises RuntimeError where no thread is to be had.
    """
    for worker in [_worker() for _ in range(READY)]:
        worker.jobs.put(_nothing)


def _nothing() -> None:
    """Do no job: the thread raises itself, and waits for the next one."""


def _worker() -> _Worker:
    """Take a thread that waits, or start one; raises RuntimeError where none is to be had."""
    try:
        return _waiting.pop()
    except IndexError:
        worker = _Worker()
        worker.start()
        return worker


async def aside(job: Callable[[], T]) -> T:
    """Run ``job`` in a thread of its own; when this is cancelled, no task waits for that thread."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if told.done():
            return
        if error is not None:
            told.set_exception(error)
        else:
            told.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = job()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, failure)

    _worker().jobs.put(work)
    return await told


async def replace(path: Path, content: bytes, *, make_folder: bool) -> None:
    """Replace a file as `durable.replace` does; when it is cancelled, the file is not replaced
    later.
    """
    given_up = threading.Event()
    try:
        await aside(
            lambda: durable.replace(
                path, content, make_folder=make_folder, wanted=lambda: not given_up.is_set()
            )
        )
    except asyncio.CancelledError:
        given_up.set()
        raise

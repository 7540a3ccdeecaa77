"""Run blocking work in threads, and await it to its end also when its caller is cancelled.

Used by `api.pair`; cuts the connection of a `control.client` whose caller waits no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from coloctl.control.client import ControlClient

T = TypeVar("T")


async def awaited(
    threads: ThreadPoolExecutor, work: Callable[[], T], hurry: Callable[[], None] = lambda: None
) -> T:
    """Run ``work`` in a thread; return its result or raise its error.

    A cancellation calls ``hurry``, and is raised when the work has ended: no work goes on
    after its caller gave up.
    """
    # A future and no task: what ends a loop cancels tasks, and the work cannot be cancelled.
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is not None:
        with contextlib.suppress(BaseException):
            future.result()
        raise cancelled
    return future.result()


class ThreadConnection:
    """One connection to a supervisor, which another thread may cut at any moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: ControlClient | None = None
        self._is_cut = False

    def hold(self, client: ControlClient) -> ControlClient:
        """Hold the connection, so that it can be cut; cut it now if that was asked for already."""
        with self._lock:
            self._client = client
            if self._is_cut:
                client.hang_up()
        return client

    def cut(self) -> None:
        """Cut the connection, so that a thread that waits on it stops waiting."""
        with self._lock:
            self._is_cut = True
            if self._client is not None:
                self._client.hang_up()

"""Blocking work in threads: awaited to its end whatever happens, and told when nobody waits."""

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
    """What ``work`` returned, or raised.

    A cancellation calls ``hurry``, and is raised when the work has ended: nothing goes on behind
    the back of whoever gave up.
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
        """The connection can be cut from now on, or was already."""
        with self._lock:
            self._client = client
            if self._is_cut:
                client.hang_up()
        return client

    def cut(self) -> None:
        """Whoever waits on the connection stops waiting."""
        with self._lock:
            self._is_cut = True
            if self._client is not None:
                self._client.hang_up()

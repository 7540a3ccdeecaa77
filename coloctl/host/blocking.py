"""Run what a disk may hold up in a thread of its own, so that no other work waits for that disk.

Called by `host.local_files`, `host.resource_use`, `ha.arbiter` and `supervisor.loop`; calls
`host.durable`. The threads of `asyncio.to_thread` are few, and a process that ends waits for each
of them: a disk that hangs would keep both from all other work.

Invariant: a write that was given up does not replace its file later, over what was written since.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from coloctl.host import durable
from coloctl.urgency import keep_up

T = TypeVar("T")


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
        keep_up()
        try:
            result = job()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=work, name="aside", daemon=True).start()
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

"""Wait for a descriptor without taking anything from it.

Called by `host.process`, `host.packet`, `host.listen` and `host.wire.relay`.
"""

from __future__ import annotations

import asyncio


async def until_readable(fd: int) -> None:
    """Wait until ``fd`` is readable. Cancelled at any instant, it has read nothing and left no
    callback.

    An event loop keeps one callback for each descriptor: use a descriptor per waiter.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def until_writable(fd: int) -> None:
    """Wait until ``fd`` is writable; cancelled and used as `until_readable`."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)

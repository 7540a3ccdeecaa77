"""Waiting for a descriptor without taking anything from it."""

from __future__ import annotations

import asyncio


async def until_readable(fd: int) -> None:
    """``fd`` is readable. Cancelled at any instant, nothing was read and no callback is left.

    An event loop keeps one callback for each descriptor: give every waiter its own.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)

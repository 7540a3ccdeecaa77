"""Wait for the first of several awaitables, or for all of them, and leave none of them running.

Called by `vm_open`, `ha.failover`, `ha.fencing` and `supervisor.acts.life`, which wait for work and
for a sign that the work has become pointless; by `ha.failover` and `ha.cutoff`, for which a guest
waits, and by `colo`, which asks a machine that is far away several things at once: over ssh each
question that waits for another's answer costs a round trip.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")


@asynccontextmanager
async def first_of(
    *waits: Awaitable[Any], within_s: float | None = None
) -> AsyncIterator[tuple[asyncio.Future[Any], ...]]:
    """Wait until one of ``waits`` is done, or ``within_s`` have passed; yields a future for each.

    The block reads which of them are done, and may wait for others. At its end, and when the wait
    is cancelled, those that are not done are cancelled and awaited; their errors are dropped.
    """
    futures = tuple(asyncio.ensure_future(one) for one in waits)
    try:
        await asyncio.wait(futures, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        yield futures
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)


@overload
async def side_by_side(one: Awaitable[T], two: Awaitable[U], /) -> tuple[T, U]: ...


@overload
async def side_by_side(
    one: Awaitable[T], two: Awaitable[U], three: Awaitable[V], /
) -> tuple[T, U, V]: ...


@overload
async def side_by_side(
    one: Awaitable[T], two: Awaitable[U], three: Awaitable[V], four: Awaitable[W], /
) -> tuple[T, U, V, W]: ...


@overload
async def side_by_side(*works: Awaitable[T]) -> tuple[T, ...]: ...


async def side_by_side(*works: Awaitable[Any]) -> tuple[Any, ...]:
    """Do all ``works`` at once; return what each returns, in their order.

    All come to their end, also where one fails. The error of the first in their order is raised
    then, whichever came first in time, so that an operator reads the same sentence each time. Where
    the call is cancelled, all are cancelled and awaited.
    """
    futures = [asyncio.ensure_future(one) for one in works]
    try:
        ended = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return tuple(ended)

"""Wait for the first of several awaitables, and leave none of them running.

Called by `vm`, `ha.failover`, `ha.fencing`, `supervisor.acts.life`, `supervisor.acts.powerdown` and
`supervisor.settling`, which wait for work and for a sign that the work has become pointless.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any


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

"""Waiting in a test's event loop until something has become true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Longer than a starved machine makes any test wait: only a defect uses it up.
PATIENCE_S = 60.0


async def becomes(true: Callable[[], object]) -> None:
    """Returns when ``true()`` is; raises `TimeoutError` when that takes a minute."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

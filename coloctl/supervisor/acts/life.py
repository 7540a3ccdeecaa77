"""Work that needs a secondary ends when that secondary does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from coloctl.errors import ReplicationError
from coloctl.vm import VM


async def unless_it_dies(secondary: VM, work: Coroutine[Any, Any, None]) -> None:
    """``work`` is done; raises `ReplicationError` as soon as the secondary's process ends."""
    working = asyncio.ensure_future(work)
    dying = asyncio.ensure_future(secondary.process.wait())
    try:
        await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ReplicationError(
                f"The secondary on node {secondary.node} died: {dying.result()}.",
                stage="protect",
                hint=f"its last words: {secondary.last_words(1).strip() or 'none'}",
            )
        await working
    finally:
        for task in (working, dying):
            task.cancel()
        await asyncio.gather(working, dying, return_exceptions=True)

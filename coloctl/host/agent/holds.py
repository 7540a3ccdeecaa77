"""Keep what an agent holds for its client by number: processes, channels, watches, folders.

Made by `host.agent.session`; the operations in `host.agent.work_processes`, `work_files` and
`work_wires` add to it. Invariant: a number is used once in a session, and what is released, or left
at the end of the session, is closed exactly once, after the tasks that attend it have ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coloctl.errors import PreconditionFailed

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Closes what is held: at once, or as a coroutine where that has to wait.
Close = Callable[[], Awaitable[None] | None]


@dataclass
class _Hold:
    value: object
    close: Close
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Holds:
    """All that one session holds."""

    def __init__(self) -> None:
        self._held: dict[int, _Hold] = {}
        self._number = 0
        self._closings: set[asyncio.Task[None]] = set()

    def add(self, value: object, close: Close) -> int:
        """Hold ``value`` until it is released, and return its number."""
        self._number += 1
        self._held[self._number] = _Hold(value, close)
        return self._number

    def attend(self, hold: int, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it ends or the hold is released."""
        self._held[hold].tasks.append(asyncio.create_task(work))

    def find(self, hold: int, kind: type[T]) -> T:
        """Find what is held under that number; raises `PreconditionFailed`: no such thing is."""
        found = self._held.get(hold)
        if found is None or not isinstance(found.value, kind):
            raise PreconditionFailed(f"The agent holds no {kind.__name__} of number {hold}.")
        return found.value

    def descriptor(self, hold: int) -> int | None:
        """Return the descriptor of a channel or a scratch; None: it is released."""
        found = self._held.get(hold)
        fileno = getattr(found.value, "fileno", None) if found is not None else None
        return None if fileno is None else int(fileno())

    def release(self, hold: int) -> None:
        """Close what is held under that number, if anything is; does not wait."""
        if (found := self._held.pop(hold, None)) is not None:
            closing = asyncio.create_task(_close(found))
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)

    async def aclose(self) -> None:
        """Release all that is held, and wait until it is closed."""
        for hold in tuple(self._held):
            self.release(hold)
        while self._closings:
            await asyncio.wait(tuple(self._closings))


async def _close(held: _Hold) -> None:
    for task in held.tasks:
        task.cancel()
    for ended in await asyncio.gather(*held.tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            log.error("What attended %r failed: %r.", held.value, ended)
    try:
        closing = held.close()
        if closing is not None:
            await closing
    except Exception:
        log.exception("%r could not be closed.", held.value)

"""Count the round trips to other machines that follow one another in a piece of work.

A question that is asked while another one is under way costs no round trip of its own. So each
task carries the number of answers that it has waited for: a task begins with its maker's number,
and its maker goes on with the greater of both numbers once the task is done. No time is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from coloctl.host.remote.contact import AgentContact
from coloctl.host.remote.watches import RemoteConversation
from coloctl.qmp.session import Session

T = TypeVar("T")


class RoundTrips:
    """What was asked, each with its number in its chain of answers that were waited for."""

    def __init__(self) -> None:
        self._after: dict[asyncio.Task[Any], int] = {}
        self.asked: list[tuple[int, str]] = []

    @property
    def serial(self) -> int:
        """The round trips that the current task has waited for, one after the other."""
        return self._after.get(_current(), 0)

    def waited(self, what: str) -> None:
        """The current task has waited for one more answer."""
        task = _current()
        self._after[task] = self._after.get(task, 0) + 1
        self.asked.append((self._after[task], what))

    def make(self, loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """Make a task that goes on with the number of its maker."""
        maker = asyncio.current_task(loop)
        task = asyncio.Task(work, loop=loop, **kwargs)
        self._after[task] = self._after.get(maker, 0) if maker else 0

        def over(done: asyncio.Task[Any]) -> None:
            number = self._after.pop(done, 0)
            if maker is not None and not maker.done():
                self._after[maker] = max(self._after.get(maker, 0), number)

        task.add_done_callback(over)
        return task


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[RoundTrips]:
    """Count what this loop asks of agents, of QEMUs and of programs beside them."""
    trips, loop = RoundTrips(), asyncio.get_running_loop()

    def count(owner: type, name: str, what: Callable[..., str]) -> None:
        ask: Callable[..., Awaitable[Any]] = getattr(owner, name)

        @functools.wraps(ask)
        async def asked(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await ask(self, *args, **kwargs)
            finally:
                trips.waited(what(self, *args))

        monkeypatch.setattr(owner, name, asked)

    with monkeypatch.context() as patch:
        monkeypatch = patch
        count(AgentContact, "ask", lambda self, do, *_: f"{self.name} {do.__name__}")
        count(Session, "execute", lambda _, command, *__: f"qmp {command.execute}")
        count(RemoteConversation, "hear", lambda *_: "a line of a program")
        loop.set_task_factory(trips.make)
        try:
            yield trips
        finally:
            loop.set_task_factory(None)

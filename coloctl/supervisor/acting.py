"""Run one act of a pair at a time, and end it early when its supervisor wants that.

Base of `supervisor.state.PairState`, which gives it the journal and the clients; every act of
`supervisor.acts` runs in `ActUnderWay.acting`.

Invariant: an act's intent is in the journal before its first step, and its outcome after its last.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from coloctl.clock import Clock
from coloctl.errors import PairBusy
from coloctl.model.copyrate import CopyRate
from coloctl.model.event import Kind
from coloctl.model.pair import PairSpec
from coloctl.model.pairevent import PairEvent, ProgressMade, StepReached
from coloctl.model.view import ActProgress
from coloctl.supervisor.beside import Beside


class ActUnderWay(ABC):
    """The act that a pair's supervisor does now, of which there is one at most."""

    spec: PairSpec
    emit: Callable[[PairEvent], None]
    beside: Beside
    clock: Clock

    def __init__(self) -> None:
        self._progress: ActProgress | None = None
        self._rate = CopyRate()  #: of the step under way
        self._act: asyncio.Task[Any] | None = None
        self._act_name = ""
        self.ending = False  #: a stop waits for the act under way: nothing new begins by itself
        self.cut_short = ""  #: what interrupted the last act, a sentence; empty: nothing did
        self._given_up: asyncio.Future[str] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @abstractmethod
    def record(self, kind: Kind, **fields: Any) -> None:
        """Write a record to the journal; raise `PreconditionFailed` where it must not be lost."""

    @property
    def act(self) -> str:
        """The act under way, empty when there is none."""
        return self._act_name

    @contextlib.asynccontextmanager
    async def acting(self, name: str, **asked: Any) -> AsyncIterator[None]:
        """Run one act at a time, journalled with what was ``asked``; raise `PairBusy` otherwise."""
        if self._act is not None:
            raise PairBusy(
                f"Pair {self.spec.name} is busy with '{self._act_name}'.",
                hint=f"`coloctl status {self.spec.name}` shows how far it is",
            )
        self._act, self._act_name = asyncio.current_task(), name
        self.cut_short = ""
        self._given_up = asyncio.get_running_loop().create_future()
        self._idle.clear()
        self.beside.make_way(name)
        outcome = "done"
        try:
            self.record(Kind.INTENT, data=asked)
            try:
                yield
            except BaseException as error:
                outcome = f"{type(error).__name__}: {error}"
                raise
            finally:
                self.record(Kind.OUTCOME, data={"outcome": outcome})
        finally:
            # Also when the journal has no room: the next act may find some.
            self._act, self._act_name, self._progress = None, "", None
            self._idle.set()

    def give_up(self, reason: str) -> None:
        """End the act under way with an error of that ``reason``, where it needs a secondary."""
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(reason)

    async def given_up(self) -> str:
        """Wait until the act under way has lost what it needs; return the reason."""
        assert self._given_up is not None
        return await asyncio.shield(self._given_up)

    async def idle(self, wait_s: float) -> bool:
        """Return whether no act is under way any more, after ``wait_s`` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._idle.wait()
        return self._act is None

    async def interrupt(self, why: str, *, spare: str = "") -> None:
        """Cancel the act under way and wait until it has cleaned up after itself.

        ``why`` is a sentence for the client that asked for that act. An act named ``spare`` is not
        cut short: it ends by itself, within its own deadlines.
        """
        if self._act is not None:
            if self._act_name != spare:
                self.cut_short = why
                self._act.cancel()
            await asyncio.wait({self._act})

    def progress(
        self, step: str, done: int | None = None, total: int | None = None, limit_s: float = 0.0
    ) -> None:
        """Report how far the act is, and how long the step may still take, where limited."""
        if limit_s or self._progress is None or self._progress.step != step:
            limit = round(limit_s, 1) if limit_s else None
            self.emit(StepReached(act=self._act_name, step=step, limit_s=limit))
        if self._progress is None or self._progress.step != step:
            self._rate = CopyRate()
        unit = "bytes" if done is not None else ""
        self._progress = ActProgress(self._act_name, step, done, total, unit)
        if done is not None:
            self._rate.at(self.clock.now(), done)
        if done is not None and total:
            self.emit(ProgressMade(act=self._act_name, step=step, done=done, total=total))

    def progress_now(self) -> ActProgress | None:
        """Return the progress of the act under way, with the rate of its copy; None: no act."""
        shown = self._progress
        if shown is None or shown.done is None:
            return shown
        now = self.clock.now()
        rate, left = self._rate.bytes_per_s(now), self._rate.left_s(now, shown.total or 0)
        return replace(
            shown,
            bytes_per_s=None if rate is None else round(rate),
            left_s=None if left is None or not shown.total else round(left, 1),
        )

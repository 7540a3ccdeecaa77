"""Adaptive mode at work, on a QEMU that is made up: when it sets what, and whom it lets alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_qmp import HANG, Refusal
from support.fakes import FakeVM, Log, in_colo, make_spec

from coloctl.journal import replay
from coloctl.model.event import PACE, last_settings
from coloctl.model.pair import CheckpointMode
from coloctl.supervisor import acts
from coloctl.supervisor.pacing import NOTE_BURST, Pacing
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit

ADAPTIVE = replace(
    make_spec(), checkpoint=replace(make_spec().checkpoint, mode=CheckpointMode.ADAPTIVE)
)


class Watched:
    """A pair in COLO whose checkpoints a test takes; ``delays`` is what QEMU was told."""

    def __init__(self, state: PairState, primary: FakeVM, log: Log) -> None:
        self.state, self.log = state, log
        self.tasks: list[asyncio.Task[None]] = []
        self.pacing = Pacing(state, self._spawn)
        self.delays: list[int] = []
        self.now = 1000.0
        primary.answer("migrate-set-parameters", self._take)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def _take(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.delays.append(arguments["x-checkpoint-delay"])
        return {}

    @property
    def seat(self) -> Seat:
        return self.state.seats["a"]

    async def checkpoint(self, after_ms: float = 1000.0, pause_ms: float = 10.0) -> None:
        self.now += after_ms / 1000
        self.seat.stats.stop(self.now)
        self.pacing.stopped(self.seat)
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=0.2)
        pause_s = self.seat.stats.resume(self.now + pause_ms / 1000)
        assert pause_s is not None
        self.pacing.resumed(self.seat, pause_s)

    async def quiet(self, number: int) -> None:
        for _ in range(number):
            await self.checkpoint(self.state.delay_ms)


@contextlib.asynccontextmanager
async def paced(folder: Path, spec: Any = ADAPTIVE) -> AsyncIterator[tuple[Watched, FakeVM]]:
    log: Log = []
    async with in_colo(folder, spec, log) as (state, a, _):
        yield Watched(state, a, log), a


async def test_a_delay_is_set_in_the_middle_of_the_next_checkpoint(tmp_path: Path) -> None:
    async with paced(tmp_path) as (pair, _):
        await pair.quiet(3)
        assert pair.state.pace.wanted_ms == 2000 and pair.delays == []
        await pair.quiet(1)
        async with asyncio.timeout(30):  # it is said by a task of its own
            while not pair.delays:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert pair.delays == [2000]
        assert pair.state.period_ms() == pair.state.view().checkpoints.delay_ms == 2000
        assert "PACE_CHANGED 1000 2000 Checkpoints came on time at 1000 ms." in pair.log


async def test_what_was_chosen_is_kept_for_the_next_supervisor(tmp_path: Path) -> None:
    async with paced(tmp_path) as (pair, _):
        await pair.quiet(4)
    assert last_settings(replay(tmp_path / "journal.jsonl").records)[PACE] == 2000


async def test_the_journal_has_only_so_many_decisions(tmp_path: Path) -> None:
    async with paced(tmp_path) as (pair, _):
        for _ in range(200):
            diverges = pair.state.delay_ms > 600
            await pair.checkpoint(310 if diverges else pair.state.delay_ms)
        assert len(pair.delays) > NOTE_BURST
    records = replay(tmp_path / "journal.jsonl").records
    assert 0 < sum(PACE in record.data for record in records) <= NOTE_BURST + 1


@pytest.mark.parametrize("how", ["fixed", "cautious", "acting"])
async def test_nothing_is_learnt_or_set_where_it_is_nobodys_turn(tmp_path: Path, how: str) -> None:
    spec = make_spec() if how == "fixed" else ADAPTIVE
    async with paced(tmp_path, spec) as (pair, _):
        pair.state.cautious = how == "cautious"
        before = pair.state.pace
        async with contextlib.AsyncExitStack() as stack:
            if how == "acting":
                await stack.enter_async_context(pair.state.acting("checkpoint"))
            await pair.quiet(9)
            assert pair.state.pace is before and pair.delays == []


@pytest.mark.parametrize("answer", [Refusal("no"), HANG])
async def test_a_qemu_that_does_not_take_it_keeps_its_delay(
    tmp_path: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coloctl.supervisor.pacing.SET_DEADLINE_S", 0.05)

    async with paced(tmp_path) as (pair, a):
        a.answer("migrate-set-parameters", answer)
        await pair.quiet(5)
        assert pair.state.delay_ms == 1000
        a.answer("migrate-set-parameters", pair._take)
        await pair.quiet(2)
        assert pair.delays == [2000] and pair.state.delay_ms == 2000


async def test_a_failover_does_not_wait_for_it(tmp_path: Path) -> None:
    async with paced(tmp_path) as (pair, a):
        await pair.quiet(3)
        a.answer("migrate-set-parameters", HANG)
        pair.now += 1
        pair.seat.stats.stop(pair.now)
        pair.pacing.stopped(pair.seat)
        async with asyncio.timeout(60):
            await acts.failover(pair.state, "b")
        (setting,) = pair.tasks
        setting.cancel()


async def test_an_operator_who_sets_the_delay_meanwhile_has_the_last_word(tmp_path: Path) -> None:
    async with paced(tmp_path) as (pair, a):
        delays = a.takes_checkpoints()
        await pair.quiet(4)
        await acts.set_values(pair.state, {"checkpoint-mode": "fixed", "checkpoint-delay": 700})
        await pair.quiet(9)
        assert delays[-1] == pair.state.period_ms() == 700


async def test_another_session_begins_with_the_delay_of_the_last(tmp_path: Path) -> None:
    async with paced(tmp_path) as (pair, _):
        await pair.quiet(4)
        pair.pacing.begin()
        assert pair.state.delay_ms == 2000 and pair.state.pace.pauses_ms == ()

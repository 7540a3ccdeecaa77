"""When a guest that runs alone is protected again, and what the state says until then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fakeclock import FakeClock
from support.fakes import fake_state, make_spec

from coloctl.errors import ReplicationError
from coloctl.model.observation import Diagnosis, Finding
from coloctl.model.pair import Policy
from coloctl.model.protection import Fact, Protection
from coloctl.supervisor import acts
from coloctl.supervisor.auto_reprotect import WAITS_S, AutoReprotect, wait_s
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit

Story = Callable[[PairState, AutoReprotect, list[str]], Awaitable[None]]


def nothing(*_: object) -> None:
    return None


def kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story: Story, *, auto: bool = True
) -> None:
    """A pair whose guest runs alone and shall not; every attempt to protect it is written down."""
    tried: list[str] = []

    async def reprotect(state: PairState, *_: Any) -> None:
        tried.append(state.spec.name)
        if len(tried) < 3:
            raise ReplicationError("Node b is no use.", stage="protect")
        state.note(Fact.MIGRATION_BEGAN, "")
        state.note(Fact.CHECKPOINT_COMPLETED, "")

    async def run() -> None:
        spec = replace(make_spec(), policy=Policy(auto_reprotect=auto))
        async with fake_state(tmp_path, spec) as state:
            state.clock = FakeClock()
            state.note(Fact.GUEST_STARTED, "")
            state.want_protection(True)
            keeper = AutoReprotect(state, nothing, nothing, asyncio.create_task)
            await story(state, keeper, tried)
            keeper.end()

    monkeypatch.setattr(acts, "reprotect", reprotect)
    asyncio.run(run())


async def tick(keeper: AutoReprotect) -> None:
    keeper.tick()
    for _ in range(5):
        await asyncio.sleep(0)


def test_each_attempt_waits_longer_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(state: PairState, keeper: AutoReprotect, tried: list[str]) -> None:
        clock = state.clock
        assert isinstance(clock, FakeClock)
        for number in (1, 2):
            await tick(keeper)
            assert len(tried) == number
            assert state.exposure == (
                f"Attempt {number} to protect it failed: Node b is no use. "
                f"The next one comes in {wait_s(number):g} s."
            )
            await tick(keeper)
            assert len(tried) == number  # not before its time
            clock.advance(wait_s(number))
        await tick(keeper)
        assert state.protection is Protection.COLO and not state.exposure
        await tick(keeper)
        assert len(tried) == 3

    kept(tmp_path, monkeypatch, story)


def test_nothing_is_tried_while_it_must_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(state: PairState, keeper: AutoReprotect, tried: list[str]) -> None:
        state.paused = True
        await tick(keeper)
        assert "paused" in state.exposure and "coloctl reprotect web" in state.exposure
        state.paused = False
        state.finding = Finding(Diagnosis.PRIMARY_FROZEN, "a", ("Node a is silent.",))
        await tick(keeper)
        assert "Node a is silent." in state.exposure
        state.finding = Finding(Diagnosis.HEALTHY)
        async with state.acting("set"):
            await tick(keeper)
        state.want_protection(False)
        await tick(keeper)
        assert not tried and not state.exposure
        state.want_protection(True)
        await tick(keeper)
        assert len(tried) == 1

    kept(tmp_path, monkeypatch, story)


def test_the_policy_leaves_it_to_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(state: PairState, keeper: AutoReprotect, tried: list[str]) -> None:
        await tick(keeper)
        assert not tried and "policy.auto_reprotect is false" in state.exposure

    kept(tmp_path, monkeypatch, story, auto=False)


def test_waits_grow_and_have_an_end() -> None:
    waits = [wait_s(failed) for failed in range(20)]
    assert waits == sorted(waits) and waits[0] == 0 and waits[-1] == WAITS_S[-1]


def test_secondaries_that_diverge_one_after_the_other_wait_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(state: PairState, keeper: AutoReprotect, tried: list[str]) -> None:
        clock = state.clock
        assert isinstance(clock, FakeClock)
        state.beside.diverged(clock.now())
        await tick(keeper)
        assert len(tried) == 1  # the first one is made anew at once
        state.beside.diverged(clock.now())
        state.beside.diverged(clock.now())
        clock.advance(wait_s(1))
        await tick(keeper)
        assert len(tried) == 1 and "3 secondaries have diverged" in state.exposure
        clock.advance(wait_s(3))
        await tick(keeper)
        assert len(tried) == 2

    kept(tmp_path, monkeypatch, story)

"""The taps of the node that serves are up, whoever takes them down; those of others stay down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fakes import FakeVM, Log, fake_state, fake_vm, seat_pair

from coloctl.colo import launch
from coloctl.journal import replay
from coloctl.model.protection import Protection
from coloctl.supervisor.state import PairState
from coloctl.supervisor.taps import TapWatch

pytestmark = pytest.mark.unit

Deed = Callable[[PairState, FakeVM, FakeVM], None]


def look(folder: Path, deed: Deed) -> tuple[Log, PairState]:
    """What was done to taps after ``deed`` on a pair in COLO, whose primary is on node a."""

    async def check() -> tuple[Log, PairState]:
        log: Log = []
        async with (
            fake_vm("a", log) as a,
            fake_vm("b", log) as b,
            fake_state(folder, log=log) as state,
        ):
            seat_pair(state, a, b)
            watch = TapWatch(state)
            deed(state, a, b)
            del log[:]
            for _ in range(2):
                await watch.look()
            return [line for line in log if "tap-" in line], state

    return asyncio.run(check())


def taps_down(state: PairState, *_: FakeVM) -> None:
    for node, host in state.ground.hosts.items():
        host.taps[f"tap-{node}0"] = False  # type: ignore[attr-defined]


def test_the_tap_of_the_guest_is_set_up_again_and_it_is_said(tmp_path: Path) -> None:
    done, state = look(tmp_path, taps_down)
    assert done == ["a: tap-a0 up"]
    assert "tap-a0 of node a" in state.view().reason and "up again" in state.view().reason
    (seen,) = (one for one in replay(tmp_path / "journal.jsonl").records if "tap-down" in one.data)
    assert (seen.node, seen.data["tap"]) == ("a", "tap-a0")


def test_a_tap_that_is_up_is_left_alone(tmp_path: Path) -> None:
    assert look(tmp_path, lambda *_: None)[0] == []


def test_a_node_that_is_given_up_stays_off_the_lan(tmp_path: Path) -> None:
    def lost(state: PairState, a: FakeVM, b: FakeVM) -> None:
        taps_down(state, a, b)
        state.restore(Protection.FAILOVER, "test")

    def retired(state: PairState, a: FakeVM, b: FakeVM) -> None:
        taps_down(state, a, b)
        state.seats["a"].retired = True

    def dead(state: PairState, a: FakeVM, b: FakeVM) -> None:
        taps_down(state, a, b)
        a.process.die()

    for deed in (lost, retired, dead):
        assert look(tmp_path, deed)[0] == []


def test_what_cannot_be_put_right_is_said_once(tmp_path: Path) -> None:
    def gone(state: PairState, *_: FakeVM) -> None:
        state.ground.hosts["a"].taps["tap-a0"] = None  # type: ignore[attr-defined]

    done, state = look(tmp_path, gone)
    assert done == [] and "is gone" in state.view().reason
    told = [one for one in replay(tmp_path / "journal.jsonl").records if "tap-down" in one.data]
    assert len(told) == 1


async def test_a_sweep_leaves_the_tap_of_another_guest_up(tmp_path: Path) -> None:
    """A start that is refused cleans up after itself, not after whoever holds the tap."""

    log: Log = []
    async with fake_state(tmp_path, log=log) as state:
        state.ground.hosts["b"].open_taps.add("tap-b0")  # type: ignore[attr-defined]
        for node in ("a", "b"):
            await launch.sweep(state.spec, state.ground, node)
    assert log == ["a: tap-a0 down"]

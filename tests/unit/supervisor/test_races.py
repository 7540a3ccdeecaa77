"""What happens at the same moment, or was true a moment ago, never makes two guests or none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import Log, in_colo, make_spec

from coloctl.errors import ColoctlError, FencingFailed, PairBusy
from coloctl.ha.failover import Steps
from coloctl.model.pair import FencingMethod, FencingSpec, NodeName
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("first", ["a", "b"])
async def test_of_two_failovers_at_once_one_is_done_and_the_other_is_told(
    tmp_path: Path, first: NodeName
) -> None:
    """A person wants one node to live on in the moment in which a diagnosis wants the other to."""
    second: NodeName = "b" if first == "a" else "a"

    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, _, _):
        done, told = await asyncio.gather(
            acts.failover(state, first),
            acts.failover(state, second),
            return_exceptions=True,
        )
        assert isinstance(told, PairBusy)
        assert not isinstance(done, BaseException)
        assert done.survivor == first
        killed = [line for line in log if line.endswith(": killed")]
        assert set(killed) == {f"{second}: killed"}
        assert f"{second}: x-colo-lost-heartbeat" not in log
        assert state.generation == 1


async def test_a_failover_that_comes_too_late_finds_nothing_to_choose(tmp_path: Path) -> None:
    """The finding was true when it was made; the pair has moved on since."""

    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, _, _):
        await acts.failover(state, "b")
        done = [line for line in log if line.startswith(("a: ", "b: "))]
        for survivor in ("a", "b"):
            with pytest.raises(ColoctlError):
                steps = Steps(state.clock, cause="primary-frozen")
                await acts.failover(state, survivor, steps=steps)  # type: ignore[arg-type]
        assert [line for line in log if line.startswith(("a: ", "b: "))] == done
        assert state.protection is Protection.UNPROTECTED


async def test_a_primary_that_was_fenced_in_vain_gets_its_network_back(tmp_path: Path) -> None:
    """Its taps went down, the agent failed, and then it is the one that lives on."""
    agent = FencingSpec(FencingMethod.COMMAND, command=("/bin/false",))
    spec = replace(make_spec(), fencing=agent)

    log: Log = []
    async with in_colo(tmp_path, spec, log) as (state, _, b):
        with pytest.raises(FencingFailed):
            await acts.failover(state, "b")
        assert state.protection is Protection.FAILED
        assert "a: tap-a0 down" in log
        b.process.die()
        await acts.failover(state, "a", force=True)
        assert log.index("a: tap-a0 up") > log.index("b: killed")
        assert log.index("a: tap-a0 up") < log.index("a: x-colo-lost-heartbeat")
        assert state.protection is Protection.UNPROTECTED


async def test_a_stop_waits_for_a_failover_and_does_not_touch_it(tmp_path: Path) -> None:
    """However often it is asked for: one fence, one claim, and then the end of the pair."""

    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, _, b):
        promoting, go_on = asyncio.Event(), asyncio.Event()
        b.before(lambda name: promoting.set() if name == "x-colo-lost-heartbeat" else None)
        failing_over = asyncio.create_task(acts.failover(state, "b"))
        await promoting.wait()
        stops = [asyncio.create_task(acts.stop(state, force=False)) for _ in range(3)]
        await asyncio.sleep(0)
        go_on.set()
        timeline = await failing_over
        assert timeline.survivor == "b"
        b.process.die()  # as it does when its guest has powered off
        done = await asyncio.gather(*stops, return_exceptions=True)
        assert "guest shut down" in done or "killed" in done
        assert [line for line in log if line == "a: tap-a0 down"][:2] == ["a: tap-a0 down"] * 2
        assert log.count("b: x-colo-lost-heartbeat") == 1
        assert state.generation == 1 and state.protection is Protection.DOWN


async def test_a_stop_is_refused_where_a_failover_waits_for_a_person(tmp_path: Path) -> None:
    by_hand = replace(make_spec(), fencing=FencingSpec(FencingMethod.MANUAL))

    log: Log = []
    async with in_colo(tmp_path, by_hand, log=log) as (state, a, _):
        failing_over = asyncio.create_task(acts.failover(state, "b"))
        while "a" not in state.confirmations:
            assert not failing_over.done(), failing_over.exception()
            await asyncio.sleep(0.001)
        for _ in range(3):
            with pytest.raises(PairBusy, match="still in a failover") as busy:
                await acts.stop(state, force=False, timeout_s=0.05)
            assert "--force" in str(busy.value.hint)
        assert not failing_over.done() and not state.ending
        assert log.count("a: tap-a0 down") == 1 and a.process.alive()
        assert await acts.stop(state, force=True) == "killed"
        assert failing_over.cancelled() or failing_over.exception()
        assert state.protection is Protection.DOWN

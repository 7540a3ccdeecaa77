"""What happens at the same moment, or was true a moment ago, never makes two guests or none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import Log, in_colo, make_spec

from coloctl.errors import ColoctlError, FencingFailed, PairBusy
from coloctl.model.pair import FencingMethod, FencingSpec, NodeName
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("first", ["a", "b"])
def test_of_two_failovers_at_once_one_is_done_and_the_other_is_told(
    tmp_path: Path, first: NodeName
) -> None:
    """A person wants one node to live on in the moment in which a diagnosis wants the other to."""
    second: NodeName = "b" if first == "a" else "a"

    async def check() -> None:
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

    asyncio.run(check())


def test_a_failover_that_comes_too_late_finds_nothing_to_choose(tmp_path: Path) -> None:
    """The finding was true when it was made; the pair has moved on since."""

    async def check() -> None:
        log: Log = []
        async with in_colo(tmp_path, log=log) as (state, _, _):
            await acts.failover(state, "b")
            done = [line for line in log if line.startswith(("a: ", "b: "))]
            for survivor in ("a", "b"):
                with pytest.raises(ColoctlError):
                    await acts.failover(state, survivor, cause="primary-frozen")  # type: ignore[arg-type]
            assert [line for line in log if line.startswith(("a: ", "b: "))] == done
            assert state.protection is Protection.UNPROTECTED

    asyncio.run(check())


def test_a_primary_that_was_fenced_in_vain_gets_its_network_back(tmp_path: Path) -> None:
    """Its taps went down, the agent failed, and then it is the one that lives on."""
    agent = FencingSpec(FencingMethod.COMMAND, command=("/bin/false",))
    spec = replace(make_spec(), fencing=agent)

    async def check() -> None:
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

    asyncio.run(check())

"""A failover that failed at its fence goes on when the node is proven down after all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import FakeVM, Log
from test_reactor import becomes, lose, spec_of, watched

from coloctl.cli.verbs.explain import sentences
from coloctl.errors import FailoverRefused, FencingFailed
from coloctl.ha.fencing import fence
from coloctl.journal import replay
from coloctl.model.pair import FencingMethod, FencingSpec
from coloctl.model.protection import Protection
from coloctl.model.view import Fencing
from coloctl.supervisor import acts
from coloctl.supervisor.evidence import explanation, records
from coloctl.supervisor.reconcile import believe
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit

#: An agent that fails at once, whatever it is told.
BROKEN = FencingSpec(FencingMethod.COMMAND, ("/bin/false",), timeout_s=2)


@asynccontextmanager
async def failed(
    tmp_path: Path, fencing: FencingSpec = BROKEN
) -> AsyncIterator[tuple[PairState, FakeVM, FakeVM, Log]]:
    """The pair has failed: node a is frozen, and its fence agent does not work."""
    async with watched(tmp_path, spec_of(fencing=fencing)) as (state, a, b, log):
        lose(a, "frozen")
        await becomes(lambda: state.protection is Protection.FAILED)
        assert state.unfenced == "a" and state.seats["a"].view.fencing is Fencing.FAILED
        yield state, a, b, log


def serves_alone(state: PairState) -> bool:
    return state.protection is Protection.UNPROTECTED and state.generation == 1


@pytest.mark.parametrize("proof", ["kernel", "person"])
async def test_it_goes_on_by_itself_with_a_proof(tmp_path: Path, proof: str) -> None:
    async with failed(tmp_path) as (state, a, b, log):
        assert "b: x-colo-lost-heartbeat" not in log
        if proof == "kernel":
            a.process.die()
        else:
            acts.confirm_fence(state, "a")
        await becomes(lambda: serves_alone(state))
        assert b.process.alive() and not a.process.alive()
        assert state.unfenced is None and not state.vouched
    (proven,) = [
        one for one in replay(tmp_path / "journal.jsonl").records
        if one.step == "fence" and "how" in one.data
    ]  # fmt: skip
    expected = {"kernel": "already-dead", "person": "confirmed-sigkill"}
    assert proven.data["how"] == expected[proof]


async def test_force_does_not_need_the_broken_agent(tmp_path: Path) -> None:
    async with failed(tmp_path) as (state, a, _, _log):
        await acts.failover(state, None, force=True)
        assert serves_alone(state) and not a.process.alive()


async def test_a_survivor_that_is_in_doubt_is_not_chosen_by_itself(tmp_path: Path) -> None:
    async with failed(tmp_path) as (state, a, b, log):
        a.event("QUORUM_REPORT_BAD", type="write", **{"node-name": "nbd0"}, error="x")
        lose(b, "frozen")
        a.process.die()
        await becomes(lambda: "Node a is down, but" in state.waiting)
        await asyncio.sleep(0.2)
        assert "b: x-colo-lost-heartbeat" not in log
        assert state.protection is Protection.FAILED


async def test_what_waits_for_a_proof_is_never_called_healthy(tmp_path: Path) -> None:
    async with failed(tmp_path) as (state, a, _, _log):
        a.process.is_frozen = False
        await becomes(lambda: "coloctl fence confirm web a" in state.waiting)
        document = explanation(state)
        said = " ".join(sentences(document))
        assert "healthy" not in said and "It fails over by itself" not in said
        # What `events` begins with; the next observation writes it.
        await becomes(lambda: records(state)[-1]["name"] == "unfenced")


async def test_a_later_supervisor_knows_whom_it_waits_for(tmp_path: Path) -> None:
    async with failed(tmp_path):
        pass
    assert believe(replay(tmp_path / "journal.jsonl").records).unfenced == "a"


async def test_nobody_waits_for_a_word_where_the_promotion_failed(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        b.host.no_taps = True
        a.process.die()
        await becomes(lambda: state.protection is Protection.FAILED)
        assert state.unfenced is None
        with pytest.raises(FailoverRefused, match="waits for a confirmation"):
            acts.confirm_fence(state, "a")


async def test_a_word_counts_while_the_agent_is_still_busy(tmp_path: Path) -> None:
    busy = replace(BROKEN, command=("/bin/sleep", "1000"), timeout_s=60)

    async with watched(tmp_path, spec_of(fencing=busy)) as (state, a, _, _log):
        lose(a, "frozen")
        await becomes(lambda: "a" in state.confirmations)
        acts.confirm_fence(state, "a")
        await becomes(lambda: serves_alone(state))


async def test_an_image_that_is_still_written_to_holds_the_promotion_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path) as (state, a, _, log):
        a.host.holding = ["the image /srv/a0.qcow2 may be written to by process 4711 (x)"]
        defaults = {**(fence.__kwdefaults__ or {}), "deadline_s": 0.1}
        monkeypatch.setattr(fence, "__kwdefaults__", defaults)
        lose(a, "dead")
        await becomes(lambda: state.protection is Protection.FAILED)
        assert "b: x-colo-lost-heartbeat" not in log
        a.host.holding = []
        await becomes(lambda: serves_alone(state))


async def test_a_refused_fence_is_still_an_error_of_its_verb(tmp_path: Path) -> None:
    async with watched(tmp_path, spec_of(fencing=BROKEN)) as (state, _, _b, _log):
        with pytest.raises(FencingFailed):
            await acts.failover(state, "b")
        assert state.protection is Protection.FAILED

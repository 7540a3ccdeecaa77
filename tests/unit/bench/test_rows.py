"""What `bench failover` and `bench circles` read from a run, and what becomes of their rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support import runs

from coloctl.bench import circles, document, failover
from coloctl.bench.circles import CircleFault, CirclesPlan
from coloctl.bench.failover import LosingNode
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FrameRun, Inventory, ObservedEvent
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.runner import check
from coloctl.errors import DeadlineMissed

pytestmark = pytest.mark.unit


def failed_over(evidence: Evidence | None = None, *verdicts: Verdict) -> RunResult:
    """The recorded run: node a was killed, b took over, a came back and froze."""
    return runs.outcome(evidence, verdicts or None)


def row(result: RunResult, node: str = "a", *, lives_on: bool = False) -> dict[str, Any]:
    return failover.row(result, LosingNode("primary", node, lives_on=lives_on))


def test_the_first_fault_of_a_recorded_run_is_a_row() -> None:
    found = row(failed_over())
    assert found["verdict"] == "valid", found["because"]
    assert (found["survivor"], found["supervisor_says"]) == ("b", "primary-dead")
    assert (found["outage_ms"], found["first_reply_ms"]) == (305.0, 271.3)
    phases = found["phases_ms"]
    assert (phases["detected"], phases["fenced"], phases["running"]) == (16.5, 32.9, 56.8)
    assert phases["fenced"] < phases["first-frame"] < phases["first-packet"]
    assert 3 < found["fault_s_after_protection"] < 6
    assert found["acknowledged"] > 100
    assert (found["lost"], found["broken"], found["stray_frames"]) == (0, 0, 0)
    assert not found["double_primary"]


def test_every_row_has_the_same_keys_but_for_a_survivor() -> None:
    quiet = replace(runs.recorded(), events=(), journal=(), takeovers=())
    void = row(failed_over(quiet))
    alone = {"fault_s_after_protection", "survivor", "supervisor_says"}
    assert set(row(failed_over())) == set(void) | alone


# -- two primaries


def test_a_node_that_lives_on_or_is_heard_after_its_fence_was_no_loser() -> None:
    alive = row(failed_over(), lives_on=True)
    assert (alive["verdict"], alive["double_primary"]) == ("invalid", True)
    assert alive["because"] == ["the QEMU of node a lives on after the failover"]
    run = runs.recorded()
    late_s = run.faults[0].at_s + 1
    heard = replace(run, frames=[*run.frames, FrameRun("a", late_s, late_s + 0.1, 2)])
    stray = row(failed_over(heard))
    assert (stray["verdict"], stray["stray_frames"], stray["double_primary"]) == (
        "invalid",
        2,
        True,
    )


def test_the_wrong_node_that_is_fenced_and_a_failover_before_the_fault_are_invalid() -> None:
    wrong = row(failed_over(), "b")
    assert wrong["because"] == ["node a was fenced, but node b was attacked"]
    run = runs.recorded()
    first = run.faults[0]
    later = replace(run, faults=[replace(first, at_s=first.at_s + 0.5)])
    early = row(failed_over(later))
    assert early["because"] == ["the pair failed over before the fault"]
    assert wrong["verdict"] == early["verdict"] == "invalid"


def test_a_second_primary_that_a_check_finds_counts_as_one() -> None:
    found = row(failed_over(None, Verdict("one_primary", Validity.INVALID, "two", ("here",))))
    assert (found["verdict"], found["double_primary"]) == ("invalid", True)
    assert found["because"] == ["two; here"]
    unknown = row(failed_over(None, Verdict("no_lost_acks", Validity.UNKNOWN, "too little")))
    assert (unknown["verdict"], unknown["double_primary"]) == ("void", False)


# -- no takeover


def changed(before: str, after: str) -> ObservedEvent:
    data = {"before": before, "fact": "", "after": after, "reason": "So it is."}
    return ObservedEvent(1003.5, "STATE_CHANGED", data)


def test_a_fault_that_was_not_noticed_is_void_and_a_failover_that_failed_is_a_loss() -> None:
    quiet = replace(runs.recorded(), events=(), journal=(), takeovers=())
    void = row(failed_over(quiet))
    assert (void["verdict"], void["phases_ms"], void["outage_ms"]) == ("void", {}, None)
    assert void["because"] == ["The supervisor did not notice the fault within 15 s."]
    failed = [changed("colo", "failover"), changed("failover", "failed")]
    lost = row(failed_over(replace(quiet, events=failed)))
    assert (lost["verdict"], lost["because"]) == ("invalid", ["The pair is failed: So it is."])


def test_a_run_that_did_not_come_to_its_fault_is_void_with_its_reason() -> None:
    nothing = Evidence(1.0, 1.0, (), {})
    found = row(runs.outcome(nothing, [], reason="The steady state did not come within 120 s."))
    assert found["verdict"] == "void"
    assert found["because"] == ["The steady state did not come within 120 s."]


# -- circles

CIRCLES = CirclesPlan((CircleFault.PRIMARY, CircleFault.SECONDARY))


def test_each_fault_of_a_recorded_run_is_a_circle() -> None:
    run = runs.recorded()
    colo_s = [one.at_s for one in run.chronicle.states if one.after == "colo"]
    holds = {"primary": {"objects": 10}, "secondary": {"objects": 7}}
    taken = [Inventory(at_s + 0.1, holds) for at_s in colo_s]
    first, second = circles.rows(CIRCLES, replace(run, inventories=taken))
    assert (first["blow"], second["blow"]) == ("primary", "secondary")
    assert (first["survivor"], first["running_ms"]) == ("b", 56.8)
    assert (first["outage_ms"], first["join_gap_ms"]) == (305.0, 2189.8)
    assert (second["outage_ms"], second["join_gap_ms"]) == (460.8, 692.1)
    assert 0 < first["exposed_s"] < run.faults[1].at_s - run.faults[0].at_s
    assert first["counts"] == second["counts"] == holds


def test_a_circle_that_did_not_close_is_no_row() -> None:
    run = runs.recorded()
    lost_s = run.faults[1].at_s
    events = [one for one in run.events if one.at_s < lost_s]
    cut = replace(run, events=events, journal=(), takeovers=())
    with pytest.raises(DeadlineMissed, match="Circle 2 did not close"):
        circles.rows(CIRCLES, cut)


def test_all_clients_are_one_workload_for_the_verdicts_of_circles() -> None:
    run = runs.recorded()
    whole = circles.together(run)
    (work,) = whole.works.values()
    assert work.spec.clients == sum(one.spec.clients for one in run.works.values())
    assert len(work.history) == sum(len(one.history) for one in run.works.values())
    assert [one.validity for one in check(runs.SCENARIO, whole)] == [Validity.VALID] * 2
    name, one = next(iter(run.works.items()))
    silent = circles.together(replace(run, works={**run.works, name: replace(one, kept=None)}))
    assert next(iter(silent.works.values())).kept is None


# -- the document


def made(number: int, verdict: str, **changes: Any) -> dict[str, Any]:
    return {
        "run": number,
        "verdict": verdict,
        "because": [],
        "phases_ms": {"detected": 10.0 * number, "running": 15.0 * number},
        "outage_ms": 100.0 * number,
        "first_reply_ms": 50.0 * number,
        "acknowledged": 1000,
        **dict.fromkeys(("lost", "broken", "stray_frames"), 0),
        "double_primary": False,
        **changes,
    }


def test_void_runs_are_in_no_figure() -> None:
    void = made(2, "void", phases_ms={}, outage_ms=None, first_reply_ms=None, acknowledged=0)
    found = failover.summarised([made(1, "valid"), void, made(3, "invalid", lost=4)])
    assert {key: found[key] for key in ("runs", "valid", "invalid", "void")} == {
        "runs": 3,
        "valid": 1,
        "invalid": 1,
        "void": 1,
    }
    assert found["phases_ms"]["running"] == {
        "n": 2, "p50": 15.0, "p90": 45.0, "p99": 45.0, "max": 45.0
    }  # fmt: skip
    assert list(found["phases_ms"]) == ["detected", "running"]
    assert found["outage_ms"]["max"] == 300.0
    assert (found["lost"], found["acknowledged"]) == (4, 2000)
    json.dumps(found)


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["valid", "valid"], 0),
        (["valid", "void"], 3),
        (["valid", "unknown"], 3),
        (["void", "invalid"], 1),
        ([], 3),
    ],
)
def test_a_loss_outweighs_a_void_run(verdicts: list[str], code: int) -> None:
    assert document.exit_code(verdicts) == code

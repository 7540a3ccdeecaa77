"""What the demo breaks, and the document that it makes of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import runs

from coloctl.chaos.run.result import RunResult
from coloctl.chaos.scenario.schedule import schedule
from coloctl.chaos.scenario.values import When
from coloctl.cli import demo_run
from coloctl.cli.demo_run import DemoPlan
from coloctl.errors import DeadlineMissed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("delay_ms", "left_s"), [(500, 2.0), (2000, 0.0)])
@pytest.mark.parametrize("kill", ["primary", "secondary"])
def test_one_host_is_killed_in_a_checkpoint_after_some_load(
    kill: str, delay_ms: int, left_s: float
) -> None:
    scenario = demo_run.scenario_of(DemoPlan(kill, 3), delay_ms)
    (fault,) = schedule(scenario, 1)
    assert (fault.kind, fault.target, fault.when) == ("kill", kill, When.CHECKPOINT)
    assert fault.at_s == left_s
    assert scenario.steady_state.checkpoints_min == demo_run.CHECKPOINTS
    assert scenario.workloads[0].clients == 3
    assert scenario.pair["policy"] == {"auto_reprotect": False}


def one_workload() -> RunResult:
    """The recorded run with one of its workloads, as the runner would hand it out."""
    run = runs.recorded()
    name, work = next(iter(run.works.items()))
    return runs.outcome(replace(run, works={name: work}))


def test_the_document_of_a_recorded_run() -> None:
    result = one_workload()
    found = demo_run.document(DemoPlan(clients=2), result)
    assert found["verdict"] == "valid"
    assert found["failover"] == {"by": "supervisor", "cause": "primary-dead", "survivor": "b"}
    assert found["in_checkpoint"]
    (work,) = result.evidence.works.values()
    acks = sum(op.outcome == "ok" for op in work.history)
    assert found["acks"]["acknowledged"] == acks <= found["acks"]["sent"]
    assert (found["acks"]["lost"], found["connections"]) == (0, {"opened": 2, "broken": 0})
    at_ms = found["timeline"]
    assert (at_ms["detected_ms"], at_ms["fenced_ms"], at_ms["running_ms"]) == (16.5, 32.9, 56.8)
    assert at_ms["first_reply_ms"] <= found["outage_ms"] <= 305.0
    assert [one["check"] for one in found["checks"]] == ["no_lost_acks", "connections_survive"]
    figures = found["checkpoints"]
    assert figures["count"] > 0
    assert figures["pause_ms_p50"] <= figures["pause_ms_p99"]


def test_a_kill_that_missed_its_checkpoint_is_told() -> None:
    result = one_workload()
    run = result.evidence
    late = replace(run.faults[0], missed="it came 2.0 ms after the checkpoint was over")
    found = demo_run.document(
        DemoPlan(), replace(result, evidence=replace(run, faults=[late, *run.faults[1:]]))
    )
    assert not found["in_checkpoint"]
    assert found["verdict"] == "valid"


def test_a_run_without_a_failover_has_no_document() -> None:
    result = one_workload()
    quiet = replace(result.evidence, events=(), journal=(), takeovers=())
    with pytest.raises(DeadlineMissed, match="did not fail over"):
        demo_run.document(DemoPlan(), replace(result, evidence=quiet))

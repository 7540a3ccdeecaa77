"""Runs of scenarios for tests: a real one that was recorded, and small made ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from support.views import pair_view

from coloctl.chaos.checks.verdict import Validity, Verdict, worst
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import (
    FaultRecord,
    FrameRun,
    ObservedEvent,
    WorkloadRecord,
)
from coloctl.chaos.run.result import QEMU, RunResult
from coloctl.chaos.run.runner import check
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import Scenario, ScheduledFault, SteadyState, Workload
from coloctl.chaos.workloads.history import Op
from coloctl.chaos.workloads.history import OpStatus as Answer
from coloctl.model.event import Record
from coloctl.model.timeline import Timeline

RECORDED = Path(__file__).parents[1] / "golden" / "runs" / "kill_then_freeze.json"

WORKLOADS = (
    Workload(name="appends", kind="redis-appends", clients=2),
    Workload(name="slow", kind="redis-appends", clients=2, numbered_from=4),
)
SCENARIO = Scenario(
    name="kill-then-freeze",
    title="The primary is killed, then the new secondary freezes",
    why="A pair that was just protected again must stand the next fault as well.",
    seed=7,
    steady_state=SteadyState(),
    workloads=WORKLOADS,
    faults=(),
    expect={"no_lost_acks": Params(), "connections_survive": Params()},
    promises=(1,),
)


@cache
def recorded() -> Evidence:
    """The primary killed at 3 s, the new secondary frozen at 10 s; TCG, steady at 1000 s."""
    told = json.loads(RECORDED.read_text())
    return Evidence(
        steady_s=told["steady_s"],
        ended_s=told["ended_s"],
        faults=[_fault(one, told["steady_s"]) for one in told["faults"]],
        works={spec.name: _work(spec, told["works"][spec.name]) for spec in WORKLOADS},
        events=[ObservedEvent(**one) for one in told["events"]],
        takeovers=[Timeline.from_json(one) for one in told["takeovers"]],
        frames=[FrameRun(**one) for one in told["frames"]],
        journal=[Record.from_json(one) for one in told["journal"]],
        remains=[],
        view=pair_view(**{one["name"]: (one["role"], 0) for one in told["view"]["nodes"]}),
    )


def _fault(told: dict[str, Any], steady_s: float) -> FaultRecord:
    at_s = told["at_s"]
    planned = ScheduledFault(told["name"], told["kind"], told["target"], at_s - steady_s)
    return FaultRecord(planned, at_s, tuple(told["nodes"]), told["role"], told.get("healed_s"))


def _work(spec: Workload, told: dict[str, Any]) -> WorkloadRecord:
    history = [
        Op(at_s, client, Answer(outcome), n, *note)
        for at_s, client, outcome, n, *note in told["history"]
    ]
    return WorkloadRecord(
        spec, history, {int(client): kept for client, kept in told["kept"].items()}
    )


def outcome(
    evidence: Evidence | None = None,
    verdicts: Sequence[Verdict] | None = None,
    reason: str = "",
) -> RunResult:
    """The recorded run as the runner would hand it out, or another one."""
    evidence = recorded() if evidence is None else evidence
    verdicts = check(SCENARIO, evidence) if verdicts is None else verdicts
    return RunResult(
        scenario=SCENARIO,
        seed=7,
        validity=Validity.UNKNOWN if reason else worst(verdicts),
        verdicts=verdicts,
        evidence=evidence,
        replay="coloctl chaos run scenarios/kill-then-freeze.toml --seed 7",
        reason=reason,
        started_at="2026-11-24T15:30:45+00:00",
        duration_s=31.2,
        qemu=QEMU("/usr/bin/qemu-system-x86_64", "11.1.3", "tcg"),
        pair_file='name = "web"\n',
    )

"""Evidence of runs that were never made: a fault at 10 s, after which by default all goes well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from support.views import PROTECTED

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import (
    Audit,
    FaultRecord,
    FaultResult,
    FrameRun,
    ObservedEvent,
    WorkloadRecord,
)
from coloctl.chaos.scenario.values import ScheduledFault, Workload
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.model.event import Kind, Record
from coloctl.model.timeline import Timeline

OK, FAIL, INFO, INVOKE = OpStatus.OK, OpStatus.FAIL, OpStatus.INFO, OpStatus.INVOKE
FAULT_S, ENDED_S = 10.0, 20.0
TIMELINE = {
    "generation": 1, "cause": "primary-dead", "survivor": "b", "lost": "a",
    "role_before": "secondary", "began_s": 10.1, "steps": {"fenced": 10.0, "verified": 50.0},
}  # fmt: skip
TAKEOVER = Timeline.from_json(TIMELINE)
KILLED = FaultRecord(
    ScheduledFault("power cut", "kill", "primary", 5.0), FAULT_S, ("a",), "primary"
)


def evidence(**changes: Any) -> Evidence:
    """A run that began to be steady at 5 s and ended at 20 s."""
    run = Evidence(
        steady_s=5.0, ended_s=ENDED_S, faults=(KILLED,), works={}, events=events(),
        takeovers=(TAKEOVER,), frames=FRAMES, journal=journal(),
        audits=tuple(Audit(at_s, "boot-1", {0: [1]}, {0: [1]}) for at_s in (6.0, 19.0)),
        differences={"disk0": ()}, remains=(), view=PROTECTED,
    )  # fmt: skip
    return replace(run, **changes)


def checked(check: str, run: Evidence, **params: Any) -> Verdict:
    """Return the verdict of a check on a run."""
    kind = CHECKS[check]
    return kind.run(run, kind.params(**params))


def counterexample(check: str, run: Evidence) -> str:
    """Return the lines of the counterexample of an invalid run; else what the verdict is."""
    verdict = checked(check, run)
    if verdict.validity is not Validity.INVALID:
        return f"none, it is {verdict.validity}: {verdict.because}"
    return "\n".join(verdict.counterexample)


def around(at_s: float, work: WorkloadRecord) -> Evidence:
    """Return what is known of a workload that was under way at that moment."""
    return Evidence(at_s, at_s, (), {work.spec.name: work})


def at_work(kind: str, history: Sequence[Op], kept: Any = None, clients: int = 1) -> Evidence:
    """A run of one workload."""
    return evidence(
        works={
            "load": WorkloadRecord(Workload(name="load", kind=kind, clients=clients), history, kept)
        }
    )


def answered(
    at_s: float, n: int, client: int = 0, outcome: OpStatus = OK, said: Any = None, **op: Any
) -> list[Op]:
    """Operation ``n`` begun just before ``at_s`` and answered then; ``said`` by the answer."""
    begun = Op(at_s - 0.01, client, INVOKE, n, **op)
    told = {**op, "value": said} if said is not None else op
    return [begun, Op(at_s, client, outcome, n, **told)]


def connected(history: Sequence[Op], client: int = 0, end: str = "closed 1") -> list[Op]:
    """The same on one connection from begin to end."""
    ended = Op(ENDED_S, client, INFO if end.startswith("closed") else FAIL, -1, end)
    return [Op(5.0, client, INFO, -1, "opened 1"), *history, ended]


def steadily(**op: Any) -> list[Op]:
    """Twelve operations, from 6 s to 17 s, each answered."""
    return [line for n in range(12) for line in answered(6.0 + n, n, **op)]


def early(history: Sequence[Op]) -> list[Op]:
    """What of it was before the fault."""
    return [op for op in history if op.at_s < FAULT_S]


FRAMES = (FrameRun("a", 5.0, 10.001, 100), FrameRun("b", 10.14, 20.0, 100))


def changed(
    at_s: float, before: str, after: str, reason: str = "so it is", fact: str = "a-fact"
) -> ObservedEvent:
    """Make the event of a change of state; without ``fact`` it is one that a listener made."""
    return ObservedEvent(
        at_s, "STATE_CHANGED", {"before": before, "after": after, "reason": reason, "fact": fact}
    )


def migration(at_s: float, node: str, status: str) -> ObservedEvent:
    """QEMU told how its migration stands."""
    data = {"node": node, "event": "MIGRATION", "data": {"status": status}}
    return ObservedEvent(at_s, "NODE_EVENT", data)


def failed_over(at_s: float, **timeline: Any) -> ObservedEvent:
    """The failover was announced."""
    return ObservedEvent(at_s, "FAILED_OVER", {"timeline": {**TIMELINE, **timeline}})


RUINED = FaultRecord(ScheduledFault("ruin", "ruin", "secondary", 5.0), FAULT_S, ("b",), "secondary")


def stranger(result: FaultResult) -> FaultRecord:
    """Make the record of another user who was on a host, as the engine makes it."""
    planned = ScheduledFault("stranger", "stranger", "a", 5.0)
    note = f"on host-a: {result}"
    return FaultRecord(planned, FAULT_S, note=note, healed_s=20.0, result=result)


def diverged(at_s: float, *, checkpoints: int) -> tuple[ObservedEvent, ...]:
    """A secondary was said to have diverged, so many checkpoints after the fault."""
    told = {"diagnosis": "secondary-diverged", "node": "b", "evidence": "It spins."}
    ends = [FAULT_S + (at_s - FAULT_S) * (n + 1) / (checkpoints + 1) for n in range(checkpoints)]
    taken = [ObservedEvent(end, "CHECKPOINT", {"node": "a", "phase": "end"}) for end in ends]
    return (*taken, ObservedEvent(at_s, "DIAGNOSIS", told))


def events(*, promoted_s: float = 10.12) -> tuple[ObservedEvent, ...]:
    """A failover to b, and the protection after it, as they were seen on a real pair."""
    told = [
        migration(4.0, "b", "colo"),
        changed(4.1, "migrating", "colo"),
        ObservedEvent(
            10.11, "NODE_EVENT", {"node": "b", "event": "COLO_EXIT", "data": {"reason": "error"}}
        ),
        changed(10.1, "colo", "failover"),
        migration(promoted_s, "b", "completed"),
        changed(10.2, "failover", "unprotected"),
        failed_over(10.21),
        changed(10.5, "unprotected", "migrating"),
        migration(11.9, "b", "colo"),
        changed(12.0, "migrating", "colo"),
    ]
    return tuple(sorted(told, key=lambda said: said.at_s))


def state(at_s: float, before: str, fact: str, after: str) -> Record:
    return Record(Kind.STATE, before=before, fact=fact, after=after, mono_s=at_s)


def journal(*, without: str = "", **changed: Any) -> tuple[Record, ...]:
    """The journal of that run; ``without`` the record of that step, its fence changed so."""
    launched = {"launched": "primary", "pid": 7, "start-time": 1}
    fence = {"how": "sigkill", "pid": 7, **changed}
    records = [
        Record(Kind.OUTCOME, step="launch", node="a", data=launched, mono_s=0.1),
        state(0.2, "down", "guest-started", "unprotected"),
        state(1.0, "unprotected", "migration-began", "migrating"),
        state(4.1, "migrating", "checkpoint-completed", "colo"),
        Record(Kind.INTENT, act="failover", generation=0, mono_s=10.1),
        state(10.1, "colo", "node-lost", "failover"),
        Record(Kind.OBSERVATION, step="fence", node="a", data=fence, mono_s=10.11),
        Record(Kind.INTENT, step="promote", generation=1, mono_s=10.115),
        state(10.2, "failover", "survivor-runs", "unprotected"),
        Record(Kind.OUTCOME, step="timeline", data=TIMELINE, mono_s=10.21),
        state(10.5, "unprotected", "migration-began", "migrating"),
        state(12.0, "migrating", "checkpoint-completed", "colo"),
    ]
    return numbered(record for record in records if record.step != without or not without)


def numbered(records: Any) -> tuple[Record, ...]:
    """With their places in the journal."""
    return tuple(replace(record, seq=seq) for seq, record in enumerate(records, start=1))

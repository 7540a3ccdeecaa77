"""Measure one pair through many failovers: it is protected again after each, under clients.

Called by `cli.verbs.bench` for `coloctl bench circles`; its run is a scenario that
`chaos.run.runner` makes, and its figures are read from `chaos.evidence.chronicle`. One pair goes
through all circles: protected, attacked, alone, protected again. Some clients connect at the
beginning and stay. In each phase of each circle another one connects and stays too: under
protection, right after the failover, and while the memory of the new secondary is sent.

Invariant: no failover and no protection is requested, only a switchover is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from coloctl.bench.document import checks, first_join_gap_ms, head, losses
from coloctl.chaos.checks.verdict import worst
from coloctl.chaos.evidence.background import Background
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.faults.operator import OperatorParams
from coloctl.chaos.run import runner
from coloctl.chaos.run.environment import Environment
from coloctl.chaos.run.runner import Run, RunMeasurement
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import FaultSpec, Scenario, SteadyState, When, Workload
from coloctl.chaos.workloads import AppendsParams
from coloctl.errors import DeadlineMissed
from coloctl.model.figures import summary
from coloctl.model.timeline import FailoverStep

#: The client of one phase appends so often, milliseconds: it keeps a connection, it is no load.
GUEST_PAUSE_MS = 20.0
#: A fault has cost the pair its protection by then, also a switchover that was asked for, seconds.
FAULT_S = 2.0
#: Load goes on for so long after the last protection, seconds.
LOAD_S = 2.0
EXPECTED = ("no_lost_acks", "connections_survive", "nothing_grows")
#: How often to look whether a circle has closed, seconds.
LOOK_S = 0.5


class CircleFault(StrEnum):
    """The fault, or the planned exchange of roles, with which a circle begins."""

    PRIMARY = "primary"  #: SIGKILL to the primary's QEMU
    SECONDARY = "secondary"  #: SIGKILL to the secondary's QEMU
    SWITCHOVER = "switchover"  #: as planned


@dataclass(frozen=True)
class CirclesPlan:
    """The circles to measure, and the clients that work meanwhile."""

    faults: tuple[CircleFault, ...]
    clients: int = 4
    seed: int = 1


Row = dict[str, Any]
Tell = Callable[[Mapping[str, Any]], None]


def scenario_of(plan: CirclesPlan, delay_ms: int) -> Scenario:
    """Build the scenario: each fault comes when the pair is steady again after the one before.

    A client that comes when the pair is steady has two checkpoint periods to connect.
    """
    faults: list[FaultSpec] = []
    works = [Workload(kind="redis-appends", clients=plan.clients)]
    connect_s = 2 * delay_ms / 1000
    before = ""
    for n, one in enumerate(plan.faults, start=1):
        name, planned = f"circle-{n}", one is CircleFault.SWITCHOVER
        fault = FaultSpec(
            name=name,
            kind="operator" if planned else "kill",
            target="pair" if planned else str(one),
            params=OperatorParams(verb="switchover") if planned else Params(),
            after=before,
            at_s=(FAULT_S, FAULT_S),
            when=When.STEADY,
            then_s=(connect_s, connect_s + 0.5),
        )
        faults.append(fault)
        works += [_guest(n, "steady", before), _guest(n, "migrating", name)]
        works += [] if planned else [_guest(n, "unprotected", name)]
        before = name
    return Scenario(
        name="bench-circles",
        title="A pair is attacked again and again, and protects itself each time",
        why="What grows or breaks from one protection to the next ends the pair in the long run.",
        steady_state=SteadyState(checkpoints_min=0, acknowledged_min=10 * plan.clients),
        workloads=tuple(works),
        faults=tuple(faults),
        pair={"policy": {"auto_reprotect": True}},
        expect={check: Params() for check in EXPECTED},
        settle_s=LOAD_S,
    )


def _guest(n: int, begins: Literal["steady", "unprotected", "migrating"], after: str) -> Workload:
    """Build the client that connects at that moment of circle ``n``."""
    return Workload(
        name=f"{begins}-{n}",
        kind="redis-appends",
        clients=1,
        params=AppendsParams(pause_ms=GUEST_PAUSE_MS),
        begins=begins,
        after=after,
    )


def circles(where: Testbed, plan: CirclesPlan, tell: Tell = lambda _circle: None) -> dict[str, Any]:
    """Measure all circles and return their document; ``tell`` receives each circle when it closes.

    Raises the error that kept a circle from closing.
    """
    run = Run.of(scenario_of(plan, where.delay_ms), plan.seed, where)
    result = runner.make(run, measure=_Telling(plan, tell), forgiving=False)
    turns = rows(plan, result.evidence)
    evidence = together(result.evidence)
    clients = sum(work.clients for work in run.scenario.workloads)
    verdicts = [
        *runner.all_injected(evidence, run.plan),
        *runner.check(run.scenario, evidence),
    ]
    lost = losses(replace(result, evidence=evidence))
    setting = {**where.to_json(), "seed": plan.seed, "clients": {"count": clients}}
    return {
        **head("circles", setting),
        "verdict": str(worst(verdicts)),
        "circles": len(turns),
        "acknowledged": lost["acknowledged"],
        "lost": lost["lost"],
        "connections": clients,
        "broken": lost["broken"],
        "running_ms": summary(turn["running_ms"] for turn in turns),
        "outage_ms": summary(turn["outage_ms"] for turn in turns),
        "exposed_s": summary(turn["exposed_s"] for turn in turns),
        "first_join_gap_ms": first_join_gap_ms(evidence.chronicle),
        "join_gap_ms": summary(turn["join_gap_ms"] for turn in turns),
        "turns": turns,
        "checks": checks(verdicts),
    }


@dataclass
class _Telling(RunMeasurement):
    """Reports each circle of a run when it closes."""

    plan: CirclesPlan
    tell: Tell

    @contextlib.contextmanager
    def during(self, environment: Environment) -> Iterator[None]:
        """See `RunMeasurement.during`."""
        with _Watch(self.plan, self.tell, environment):
            yield


class _Watch(Background):
    """Looks for circles that have closed, from its creation to the end of its block."""

    def __init__(self, plan: CirclesPlan, tell: Tell, environment: Environment) -> None:
        super().__init__("circles")
        self._plan, self._tell, self._environment = plan, tell, environment
        self._told = 0
        self.begin()

    def work(self) -> None:
        """See `Background.work`."""
        while not self.ended:
            time.sleep(LOOK_S)
            self._look()

    def close(self) -> None:
        """See `Background.close`."""
        self._look()

    def _look(self) -> None:
        faults, heard = self._environment.faults(), tuple(self._environment.listener.heard)
        chronicle = Chronicle(faults=faults, events=heard)
        for number in range(self._told, len(faults)):
            if (closed := times(chronicle, number)) is None:
                return
            self._told += 1
            self._tell({"circle": self._told, "blow": str(self._plan.faults[number]), **closed})


def rows(plan: CirclesPlan, evidence: Evidence) -> list[Row]:
    """Compute the row of each circle; raises `DeadlineMissed` for one that did not close."""
    chronicle = evidence.chronicle
    found: list[Row] = []
    for fault, effect in zip(evidence.faults, chronicle.effects, strict=True):
        closed = times(chronicle, len(found))
        if closed is None:
            raise DeadlineMissed(f"Circle {len(found) + 1} did not close.")
        next_s = chronicle.next_fault_s(fault)
        counts = [one.counts for one in evidence.inventories if fault.at_s < one.at_s < next_s]
        found.append(
            {
                "blow": str(plan.faults[len(found)]),
                **closed,
                "counts": counts[-1] if counts else {},
                "outage_ms": effect.outage.longest_ms,
                "join_gap_ms": effect.join_ms,
            }
        )
    return found


def times(chronicle: Chronicle, number: int) -> Row | None:
    """Compute the times of one circle; None while it has not closed."""
    fault, effect = chronicle.faults[number], chronicle.effects[number]
    if effect.takeover is None or effect.again_s is None:
        return None
    running_s = effect.takeover.done_s(FailoverStep.RUNNING)
    return {
        "survivor": effect.takeover.survivor,
        "running_ms": round((running_s - fault.at_s) * 1000, 1),
        "exposed_s": round(effect.again_s - running_s, 2),
    }


def together(evidence: Evidence) -> Evidence:
    """Return the evidence with all clients as one workload, for one verdict about all of them."""
    works = evidence.works.values()
    history = sorted((op for work in works for op in work.history), key=lambda op: op.at_s)
    kept = {client: held for work in works for client, held in (work.kept or {}).items()}
    clients = sum(work.spec.clients for work in works)
    spec = Workload(kind="redis-appends", name="clients").model_copy(update={"clients": clients})
    silent = any(work.kept is None for work in works)
    whole = WorkloadRecord(spec, history, None if silent else kept)
    return replace(evidence, works={spec.name: whole})

"""Protect a guest, kill a host, and show that nothing was lost: the project's demonstration.

Called by `cli.verbs.demo`, which draws it, and by `cli.demo_machines`; tests check its document.
Its run is a scenario that `chaos.run.runner` makes, and its figures are read from
`chaos.evidence.chronicle`.

Invariant: the supervisor is not asked to fail over, it notices and acts by itself. Everything that
was set up is removed however the demonstration ends, unless the pair is to be kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coloctl.bench.document import checks, first_join_gap_ms, losses
from coloctl.chaos.checks.verdict import worst
from coloctl.chaos.evidence.background import Background
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.run import runner
from coloctl.chaos.run.environment import Environment
from coloctl.chaos.run.result import RunResult, workload
from coloctl.chaos.run.runner import Run, RunMeasurement
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import FaultSpec, Scenario, SteadyState, When, Workload
from coloctl.errors import ColoctlError, DeadlineMissed
from coloctl.model.figures import summary
from coloctl.model.timeline import FailoverStep
from coloctl.model.view import PairView

#: Version of the demonstration's document; grows with incompatible changes only.
DEMO_SCHEMA = 1
#: Complete checkpoints before the fault.
CHECKPOINTS = 4
#: Of load before the fault and after the failover, seconds.
LOAD_S = 4.0
#: A fault that was not noticed by then is not noticed at all, seconds.
NOTICE_S = 15.0
#: How often the pair is drawn, seconds.
DRAWN_S = 0.25
#: The step that each sentence of a run begins.
STEPS = {
    "the guest boots": "The guest boots on host a",
    "the clients come": "{clients} clients append numbered records",
    "the guest is protected": "The guest is protected while it serves",
    "protected": "Protected: each checkpoint makes host b equal to host a",
    "gathering": "Every acknowledged record is read back from the survivor",
}


@dataclass(frozen=True)
class DemoPlan:
    """The role whose QEMU is killed, and how many clients append."""

    kill: str = "primary"
    clients: int = 4


class Screen(Protocol):
    """Shows the demonstration as it goes on; two threads call it."""

    def step(self, title: str) -> None:
        """Show that the next step begins."""
        ...

    def view(self, view: PairView, acknowledged: int) -> None:
        """Show the pair's state, and how many records clients saw acknowledged so far."""
        ...


def scenario_of(plan: DemoPlan, delay_ms: int) -> Scenario:
    """Build the scenario: one QEMU is killed in the middle of a checkpoint."""
    left_s = max(0.0, LOAD_S - CHECKPOINTS * delay_ms / 1000)
    fault = FaultSpec(kind="kill", target=plan.kill, at_s=(left_s, left_s), when=When.CHECKPOINT)
    return Scenario(
        name="demo",
        title="A host of a protected guest is killed",
        why="This is what coloctl is for.",
        steady_state=SteadyState(checkpoints_min=CHECKPOINTS, acknowledged_min=10 * plan.clients),
        workloads=(Workload(kind="redis-appends", name="clients", clients=plan.clients),),
        faults=(fault,),
        pair={"policy": {"auto_reprotect": False}},
        expect={"no_lost_acks": Params(), "connections_survive": Params()},
        settle_s=LOAD_S,
        notice_s=NOTICE_S,
    )


def run(where: Testbed, plan: DemoPlan, screen: Screen) -> dict[str, Any]:
    """Run the demonstration and return its document, whose ``verdict`` states the result.

    Raises the error that stopped it before a verdict. Nothing is left over then, nor after an
    interrupt.
    """
    screen.step("The lab: two hosts, a client, and the wires between them")
    result, shown = shown_run(where, scenario_of(plan, where.delay_ms), screen, STEPS, plan.clients)
    screen.step("The pair stays for you to explore" if where.keep else "The lab is removed")
    return {
        **document(plan, result),
        **surroundings(where, result),
        "kept": shown.folder if where.keep else None,
    }


def shown_run(
    where: Testbed, scenario: Scenario, screen: Screen, steps: Mapping[str, str], clients: int
) -> tuple[RunResult, ShownRun]:
    """Make a run of the scenario whose sentences begin ``steps`` on the screen."""

    def tell(sentence: str) -> None:
        if sentence in steps:
            screen.step(steps[sentence].format(clients=clients))

    shown = ShownRun(screen)
    made = Run.of(scenario, 1, where)
    return runner.make(made, tell, measure=shown, forgiving=False), shown


def surroundings(where: Testbed, result: RunResult) -> dict[str, Any]:
    """Return the part of a document about the QEMU of a run, and what the run left behind."""
    return {
        "qemu": {"binary": str(where.qemu), "accel": where.accel},
        "left_behind": list(result.evidence.remains or ()),
    }


class ShownRun(RunMeasurement):
    """Draws the pair from its steady state until the load ends."""

    def __init__(self, screen: Screen) -> None:
        self.folder = ""
        self._screen = screen

    @contextlib.contextmanager
    def during(self, environment: Environment) -> Iterator[None]:
        """See `RunMeasurement.during`."""
        self.folder = str(environment.home)
        with _Drawing(environment, self._screen):
            yield


class _Drawing(Background):
    """Draws the pair again and again, and shows its failover as a step."""

    def __init__(self, environment: Environment, screen: Screen) -> None:
        super().__init__("demo")
        self._environment, self._screen = environment, screen
        self.begin()

    def work(self) -> None:
        """See `Background.work`."""
        survivor = ""
        while not self.ended:
            with contextlib.suppress(ColoctlError):
                works = self._environment.works.values()
                acknowledged = sum(clients.acknowledged() for _, clients in works)
                self._screen.view(self._environment.listener.view(), acknowledged)
            takeovers = Chronicle(events=tuple(self._environment.listener.heard)).takeovers
            if takeovers and not survivor:
                survivor = takeovers[0].survivor
                self._screen.step(
                    f"The pair failed over by itself: {self._place(survivor)} carries on"
                )
            time.sleep(DRAWN_S)

    def _place(self, node: str) -> str:
        machine = self._environment.site.machines.get(node)
        return f"host {node}" if machine is None else f"machine {machine}"


def document(plan: DemoPlan, result: RunResult) -> dict[str, Any]:
    """Build the document of a run; raises `DeadlineMissed` for one without a failover."""
    evidence, chronicle = result.evidence, result.evidence.chronicle
    if not (evidence.faults and chronicle.takeovers):
        raise DeadlineMissed(f"The pair did not fail over within {NOTICE_S:.0f} s.")
    fault, takeover = evidence.faults[0], chronicle.takeovers[0]
    (work,) = evidence.works.values()
    counted, outage = workload(work), chronicle.effects[0].outage
    verdicts = [one for one in result.verdicts if one.check in result.scenario.expect]
    at_ms = takeover.since_ms(fault.at_s)
    steps = (
        FailoverStep.DETECTED, FailoverStep.FENCED, FailoverStep.PROMOTED, FailoverStep.RUNNING
    )  # fmt: skip
    pauses = summary(one.ms for one in chronicle.pauses if one.ended_s <= fault.at_s)
    return {
        "schema": DEMO_SCHEMA,
        "verdict": str(worst(verdicts)),
        "killed": plan.kill,
        "failover": {
            "by": "operator" if takeover.cause == "operator" else "supervisor",
            "cause": takeover.cause,
            "survivor": takeover.survivor,
        },
        "in_checkpoint": not fault.missed,
        "acks": {
            "sent": counted["sent"],
            "acknowledged": counted["acknowledged"],
            "lost": losses(result)["lost"],
        },
        "connections": {"opened": counted["connections"], "broken": counted["broken"]},
        "outage_ms": outage.longest_ms,
        "timeline": {
            "fault": 0,
            **{f"{step}_ms": at_ms.get(step) for step in steps},
            "first_reply_ms": outage.first_reply_ms,
        },
        "checks": checks(verdicts),
        "protect_gap_ms": first_join_gap_ms(chronicle),
        "checkpoints": {
            "count": pauses["n"],
            "pause_ms_p50": pauses["p50"],
            "pause_ms_p99": pauses["p99"],
        },
    }

"""Take the machines of a protected guest away in turn, and show that nothing was lost.

Called by `cli.verbs.demo` for `--machines`; its scenario is of `chaos.scenario.values`, and
`cli.demo_run` runs it and makes the document of its first fault, with what each step did.

Invariant: the supervisor is asked for the switchover alone. It notices a machine that is gone, and
protects the guest again when that is back, by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coloctl.chaos.evidence.chronicle import FaultEffect
from coloctl.chaos.evidence.records import FaultRecord
from coloctl.chaos.faults.operator import OperatorParams
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import FaultSpec, Scenario, SteadyState, When, Workload
from coloctl.cli import demo_run
from coloctl.cli.demo_run import CHECKPOINTS, NOTICE_S, DemoPlan, Screen
from coloctl.model.event import Kind

#: How long a machine is off, seconds.
OFF_S = 3.0
#: Of load before the first machine is gone and after the last is back, seconds.
LOAD_S = 2.5
#: The step that each sentence of a run begins.
STEPS = {
    "the guest boots": "The guest boots on machine hv1",
    "the clients come": "{clients} clients append numbered records",
    "the guest is protected": "The guest is protected while it serves; every wire is encrypted",
    "protected": "Protected: each checkpoint makes hv2 equal to hv1",
    "off: machine-crash secondary (b)": "Machine hv2 loses its power",
    "off: healed": "Machine hv2 boots, and is brought in sync by difference",
    "switch: operator pair": "An operator switches the roles: hv2 takes the guest over",
    "upgrade: machine-shutdown secondary (a)": "Machine hv1 is shut down for an upgrade",
    "upgrade: healed": "Machine hv1 boots, and is brought in sync by difference",
    "gathering": "Every acknowledged record is read back",
}
#: What the run is named in the document: no QEMU alone is killed.
KILLED = "machine"


@dataclass(frozen=True)
class MachinesPlan:
    """The number of clients that append."""

    clients: int = 4


def scenario_of(plan: MachinesPlan, delay_ms: int) -> Scenario:
    """Build the scenario: the secondary's machine is off, roles change, the other one is off."""
    left_s = max(0.0, LOAD_S - CHECKPOINTS * delay_ms / 1000)
    return Scenario(
        name="demo-machines",
        title="The machines of a protected guest are taken away in turn",
        why="This is what a second machine is for.",
        steady_state=SteadyState(checkpoints_min=CHECKPOINTS, acknowledged_min=10 * plan.clients),
        workloads=(Workload(kind="redis-appends", name="clients", clients=plan.clients),),
        faults=(
            FaultSpec(
                name="off",
                kind="machine-crash",
                target="secondary",
                at_s=(left_s, left_s),
                duration_s=(OFF_S, OFF_S),
            ),
            FaultSpec(
                name="switch",
                kind="operator",
                target="pair",
                params=OperatorParams(verb="switchover"),
                after="off",
                at_s=(OFF_S, OFF_S),
                when=When.STEADY,
            ),
            FaultSpec(
                name="upgrade",
                kind="machine-shutdown",
                target="secondary",
                after="switch",
                at_s=(1.0, 1.0),
                when=When.STEADY,
                duration_s=(OFF_S, OFF_S),
            ),
        ),
        expect={
            "no_lost_acks": Params(),
            "connections_survive": Params(),
            "one_primary": Params(),
            "protected_at_end": Params(),
            "journal_consistent": Params(),
            "one_boot": Params(),
        },
        settle_s=LOAD_S,
        notice_s=NOTICE_S,
    )


def run(where: Testbed, plan: MachinesPlan, screen: Screen) -> dict[str, Any]:
    """Run the demonstration; returns and raises as `demo_run.run`."""
    screen.step("The lab: machines hv1, hv2 and witness, a client, their networks")
    scenario = scenario_of(plan, where.delay_ms)
    result, _ = demo_run.shown_run(where, scenario, screen, STEPS, plan.clients)
    screen.step("The lab is removed")
    return {**document(plan, result), **demo_run.surroundings(where, result), "kept": None}


def document(plan: MachinesPlan, result: RunResult) -> dict[str, Any]:
    """Build the document of a run; raises `DeadlineMissed` for one without a failover."""
    return {
        **demo_run.document(DemoPlan(KILLED, plan.clients), result),
        "machines": list(_steps(result)),
    }


def _steps(result: RunResult) -> Iterator[dict[str, Any]]:
    """Return what each fault brought about, in their order; times in seconds and milliseconds."""
    evidence, chronicle = result.evidence, result.evidence.chronicle
    for fault, effect in zip(evidence.faults, chronicle.effects, strict=True):
        yield {
            "step": fault.fault.name,
            "node": fault.nodes[0] if fault.nodes else None,
            "at_s": round(fault.at_s - evidence.steady_s, 1),
            "off_s": _seconds(fault.at_s, fault.healed_s) if fault.nodes else None,
            "outage_ms": effect.outage.longest_ms,
            "protected_after_s": _seconds(_back_s(fault), effect.again_s),
            "copied": _copied(result, fault, effect),
        }


def _back_s(fault: FaultRecord) -> float:
    """Return when the machine was back, or the fault itself where it took none away."""
    return fault.healed_s if fault.nodes and fault.healed_s is not None else fault.at_s


def _seconds(from_s: float, to_s: float | None) -> float | None:
    return None if to_s is None else round(to_s - from_s, 1)


def _copied(result: RunResult, fault: FaultRecord, effect: FaultEffect) -> dict[str, Any] | None:
    """Return what was copied to protect the guest again: method, and bytes that were sent."""
    until_s = effect.again_s or result.evidence.ended_s
    for one in result.evidence.journal:
        if one.kind is Kind.NOTE and "copied" in one.data and fault.at_s < one.mono_s <= until_s:
            copied = one.data["copied"]
            return {key: copied[key] for key in ("method", "sent", "full")}
    return None

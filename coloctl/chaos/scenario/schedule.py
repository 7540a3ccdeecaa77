"""Make the faults of one run from a scenario and a seed; pure, the same for the same seed.

Called by `chaos.run.runner`, and by `chaos.run.shrink` for smaller plans. A fault written with
``at_s = [2, 5]`` and ``times = 3`` becomes three scheduled faults: the first at, say, 3.217 s, each
of the others after the one before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from coloctl.chaos.scenario.tables import Span
from coloctl.chaos.scenario.values import FaultSpec, Scenario, ScheduledFault, Workload


def schedule(scenario: Scenario, seed: int) -> tuple[ScheduledFault, ...]:
    """Return every fault of the run, in the order of the file.

    Each fault has a random generator of its own, so that one that is left out changes no other.
    """
    last = {fault.name: _name(fault, fault.times - 1) for fault in scenario.faults}
    return tuple(
        planned
        for number, fault in enumerate(scenario.faults)
        for planned in _planned(
            fault,
            last.get(fault.after, ""),
            random.Random(f"{seed}/{number}/{fault.name}"),
        )
    )


def _name(fault: FaultSpec, turn: int) -> str:
    return fault.name if fault.times == 1 else f"{fault.name}.{turn + 1}"


def _planned(fault: FaultSpec, after: str, chance: random.Random) -> Iterator[ScheduledFault]:
    before = after
    for turn in range(fault.times):
        at_s = _within(fault.every_s if turn else fault.at_s, chance)
        (choice,) = chance.choices(fault.choices, [one.weight for one in fault.choices])
        name = _name(fault, turn)
        yield ScheduledFault(
            name=name,
            kind=choice.kind,
            target=choice.target,
            at_s=at_s,
            when=choice.when or fault.when,
            after=before,
            duration_s=None if choice.duration_s is None else _within(choice.duration_s, chance),
            params=choice.params,
            then_s=_within(fault.then_s, chance) if fault.then_s[1] else 0.0,
        )
        before = name


def _within(span: Span, chance: random.Random) -> float:
    return round(chance.uniform(*span), 3)


def workloads(scenario: Scenario, plan: tuple[ScheduledFault, ...]) -> tuple[Workload, ...]:
    """Return the workloads, each after the last fault of the plan that has the name it waits for.

    One whose fault was left out waits for none.
    """
    last = {name: one.name for one in plan for name in (one.name.rpartition(".")[0], one.name)}
    last[""] = ""
    works = scenario.workloads
    return tuple(work.model_copy(update={"after": last.get(work.after, "")}) for work in works)


@dataclass(frozen=True)
class SmallerPlan:
    """A plan with fewer or shorter faults, and a description of the difference."""

    plan: tuple[ScheduledFault, ...]
    how: str


def smaller(plan: tuple[ScheduledFault, ...]) -> Iterator[SmallerPlan]:
    """Return plans that are simpler than ``plan``, the simplest first.

    First halves and single faults are left out, then times are shortened. A fault that waits for
    one that is left out waits for the predecessor of that.
    """
    size = len(plan) // 2
    while size >= 1:
        for start in range(0, len(plan), size):
            gone = plan[start : start + size]
            if len(gone) < len(plan):
                yield SmallerPlan(
                    leave_out(plan, gone), "without " + ", ".join(p.name for p in gone)
                )
        size //= 2
    for number, fault in enumerate(plan):
        shorter: list[tuple[str, ScheduledFault]] = []
        if fault.duration_s is not None and fault.duration_s >= 1.0:
            half_s = round(fault.duration_s / 2, 3)
            shorter.append((f"lasting {half_s:g} s", replace(fault, duration_s=half_s)))
        if fault.at_s >= 1.0:
            half_s = round(fault.at_s / 2, 3)
            shorter.append((f"after {half_s:g} s", replace(fault, at_s=half_s)))
        for how, less in shorter:
            yield SmallerPlan(
                (*plan[:number], less, *plan[number + 1 :]), f"with {less.name} {how}"
            )


def leave_out(
    plan: tuple[ScheduledFault, ...], gone: tuple[ScheduledFault, ...]
) -> tuple[ScheduledFault, ...]:
    """Return the plan without those faults; none waits for a fault that is left out."""
    waits = {fault.name: fault.after for fault in gone}

    def real(name: str) -> str:
        while name in waits:
            name = waits[name]
        return name

    return tuple(replace(fault, after=real(fault.after)) for fault in plan if fault not in gone)

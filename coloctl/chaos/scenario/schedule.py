"""From a scenario and a seed to the faults of one run: pure, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from coloctl.chaos.scenario.values import Choice, FaultSpec, Planned, Scenario, Span


def schedule(scenario: Scenario, seed: int) -> tuple[Planned, ...]:
    """Every fault of the run, in the order of the file.

    Each fault has dice of its own, so that one that is left out changes none of the others.
    """
    last = {fault.name: _name(fault, fault.trigger.times - 1) for fault in scenario.faults}
    return tuple(
        planned
        for number, fault in enumerate(scenario.faults)
        for planned in _planned(
            fault,
            last.get(fault.trigger.after, ""),
            random.Random(f"{seed}/{number}/{fault.name}"),
        )
    )


def _name(fault: FaultSpec, turn: int) -> str:
    return fault.name if fault.trigger.times == 1 else f"{fault.name}.{turn + 1}"


def _planned(fault: FaultSpec, after: str, dice: random.Random) -> Iterator[Planned]:
    trigger, before = fault.trigger, after
    for turn in range(fault.trigger.times):
        at_s = _within(trigger.every_s if turn else trigger.at_s, dice)
        (choice,) = dice.choices(fault.choices, [one.weight for one in fault.choices])
        name = _name(fault, turn)
        yield Planned(
            name=name,
            kind=choice.kind,
            target=choice.target,
            at_s=at_s,
            when=choice.when or trigger.when,
            after=before,
            duration_s=_lasts(choice, dice),
            params=choice.params,
        )
        before = name


def _within(span: Span, dice: random.Random) -> float:
    return round(dice.uniform(*span), 3)


def _lasts(choice: Choice, dice: random.Random) -> float | None:
    return None if choice.duration_s is None else _within(choice.duration_s, dice)


@dataclass(frozen=True)
class Smaller:
    """A plan with less in it, and what is less about it."""

    plan: tuple[Planned, ...]
    how: str


def smaller(plan: tuple[Planned, ...]) -> Iterator[Smaller]:
    """Plans that are simpler than ``plan``, the simplest first: halves and single faults left out,
    then times shortened. A fault that waits for one that is gone waits for what that waited for.
    """
    size = len(plan) // 2
    while size >= 1:
        for start in range(0, len(plan), size):
            gone = plan[start : start + size]
            if len(gone) < len(plan):
                yield Smaller(leave_out(plan, gone), "without " + ", ".join(p.name for p in gone))
        size //= 2
    for number, fault in enumerate(plan):
        shorter: list[tuple[str, Planned]] = []
        if fault.duration_s is not None and fault.duration_s >= 1.0:
            half_s = round(fault.duration_s / 2, 3)
            shorter.append((f"lasting {half_s:g} s", replace(fault, duration_s=half_s)))
        if fault.at_s >= 1.0:
            half_s = round(fault.at_s / 2, 3)
            shorter.append((f"after {half_s:g} s", replace(fault, at_s=half_s)))
        for how, less in shorter:
            yield Smaller((*plan[:number], less, *plan[number + 1 :]), f"with {less.name} {how}")


def leave_out(plan: tuple[Planned, ...], gone: tuple[Planned, ...]) -> tuple[Planned, ...]:
    """The plan without those; nobody waits for a fault that is not there."""
    waits = {fault.name: fault.after for fault in gone}

    def real(name: str) -> str:
        while name in waits:
            name = waits[name]
        return name

    return tuple(replace(fault, after=real(fault.after)) for fault in plan if fault not in gone)

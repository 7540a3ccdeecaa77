"""Define what a check is, and what all checks share: verdicts, and how much evidence is too little.

Used by every module of `chaos.checks`; called by `chaos.run.runner` through `CHECKS`.
Invariant: a verdict is valid, invalid with a counterexample, or unknown. Too little evidence is
unknown, never valid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from inspect import cleandoc
from typing import Any

from pydantic import Field

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.scenario.values import Params
from coloctl.chaos.workloads.history import Op, OpStatus

#: A counterexample is read by people; more lines of the same kind add nothing.
EXAMPLES_MAX = 10


class Validity(StrEnum):
    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"  #: too little happened; never taken for valid


@dataclass(frozen=True)
class Verdict:
    """The result of one check, and what it rests on."""

    check: str
    validity: Validity
    because: str
    counterexample: tuple[str, ...] = ()


def worst(verdicts: Iterable[Verdict]) -> Validity:
    """Return invalid if any is, else unknown if any is, else valid; for none, unknown."""
    found = {verdict.validity for verdict in verdicts} or {Validity.UNKNOWN}
    for validity in (Validity.INVALID, Validity.UNKNOWN):
        if validity in found:
            return validity
    return Validity.VALID


class Sides(Params):
    """The acknowledgements that each workload must have before, during and after each fault."""

    before_min: int = Field(default=1, ge=0)
    during_min: int = Field(default=0, ge=0)  #: of faults that last until they are healed
    after_min: int = Field(default=1, ge=0)


CheckFunction = Callable[[Evidence, Any], Verdict]


@dataclass(frozen=True)
class Check:
    """One check; ``run`` gets the evidence and its own `Params`.

    ``needs`` names evidence that is collected only where a check asks for it: ``audit`` of the
    guest, comparison of its ``disks``, ``inventory`` of both QEMUs.
    """

    doc: str
    run: CheckFunction
    params: type[Params] = Params
    needs: frozenset[str] = frozenset()


#: All checks by name, which is that of their function.
CHECKS: dict[str, Check] = {}


def check(
    params: type[Params] = Params, needs: Collection[str] = ()
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as the check of its name; the docstring describes it to users."""

    def register(function: CheckFunction) -> CheckFunction:
        name = function.__name__

        def named(evidence: Evidence, given: Any) -> Verdict:
            return replace(function(evidence, given), check=name)

        doc = " ".join(cleandoc(function.__doc__ or name).split())
        CHECKS[name] = Check(doc, named, params, frozenset(needs))
        return named

    return register


def valid(because: str) -> Verdict:
    """Return that the promise was kept, on that much evidence."""
    return Verdict("", Validity.VALID, because)


def unknown(because: str) -> Verdict:
    """Return that the evidence does not suffice."""
    return Verdict("", Validity.UNKNOWN, because)


def invalid(because: str, examples: Iterable[str] = ()) -> Verdict:
    """Return that the promise was broken, as the examples show."""
    return Verdict("", Validity.INVALID, because, tuple(examples)[:EXAMPLES_MAX])


def when(evidence: Evidence, at_s: float) -> str:
    """Format a moment for people: seconds since the steady state."""
    return f"{at_s - evidence.steady_s:.3f} s"


def count(number: int, thing: str) -> str:
    """Format a number of things: ``1 read``, ``2 reads``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def works(evidence: Evidence, kinds: Collection[str]) -> list[WorkloadRecord]:
    """Return the workloads of those kinds."""
    return [work for work in evidence.works.values() if work.spec.kind in kinds]


def by_client(kept: Mapping[Any, Any]) -> dict[int, Any]:
    """Return the same with numbers for clients: JSON has text for keys only."""
    return {int(client): value for client, value in kept.items()}


def thin(evidence: Evidence, history: Sequence[Op], sides: Sides) -> str:
    """Return a sentence if too little was acknowledged on a side of a fault; empty otherwise.

    Without any fault the steady state is what has two sides.
    """
    acks = [op.at_s for op in history if op.outcome is OpStatus.OK]
    faults = [(one.fault.name, one.at_s, one.healed_s) for one in evidence.faults]
    for name, at_s, healed_s in faults or [("the steady state", evidence.steady_s, None)]:
        end_s = at_s if healed_s is None else healed_s
        found = (
            ("before", sum(ack < at_s for ack in acks), sides.before_min),
            ("during", sum(at_s <= ack <= end_s for ack in acks), sides.during_min),
            ("after", sum(ack > end_s for ack in acks), sides.after_min),
        )
        for side, number, least in found:
            if number < least and not (side == "during" and healed_s is None):
                return f"only {number} acknowledged {side} {name}, of {least} that are needed"
    return ""


def each_work(
    evidence: Evidence,
    kinds: Collection[str],
    check_one: Callable[[WorkloadRecord], Verdict],
    sides: Sides | None = None,
) -> Verdict:
    """Check the workloads of those kinds one by one, and return the worst verdict.

    A workload with too little on a side of a fault is never valid.
    """
    parts: list[Verdict] = []
    for work in works(evidence, kinds):
        verdict = check_one(work)
        if verdict.validity is Validity.VALID and sides is not None:
            scarce = thin(evidence, work.history, sides)
            verdict = unknown(scarce) if scarce else verdict
        parts.append(replace(verdict, because=f"{work.spec.name}: {verdict.because}"))
    if not parts:
        return unknown(f"there was no workload of the kinds {', '.join(sorted(kinds))}")
    found = worst(parts)
    alike = [part for part in parts if part.validity is found]
    examples = tuple(one for part in alike for one in part.counterexample)
    return Verdict("", found, "; ".join(part.because for part in alike), examples[:EXAMPLES_MAX])

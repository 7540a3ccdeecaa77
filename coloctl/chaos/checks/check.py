"""What a judge is, and what all judges share: verdicts, and how much is too little to tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from coloctl.chaos.checks.verdict import Validity, Verdict, worst
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, Outcome

#: A counterexample is for people; more of the same tells them nothing.
EXAMPLES_MAX = 10


class Params(BaseModel):
    """The keys that a check takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sides(Params):
    """How many acknowledgements each workload must have before, during and after each fault."""

    before_min: int = Field(default=1, ge=0)
    during_min: int = Field(default=0, ge=0)  #: of faults that last until they are healed
    after_min: int = Field(default=1, ge=0)


@dataclass(frozen=True)
class Check:
    """One judge. ``judge`` gets the evidence and its own `Params`."""

    doc: str
    judge: Callable[[Evidence, Any], Verdict]
    params: type[Params] = Params


def valid(check: str, because: str) -> Verdict:
    """The promise was kept, on that much evidence."""
    return Verdict(check, Validity.VALID, because)


def unknown(check: str, because: str) -> Verdict:
    """Nobody can tell."""
    return Verdict(check, Validity.UNKNOWN, because)


def invalid(check: str, because: str, examples: Iterable[str] = ()) -> Verdict:
    """The promise was broken, as the examples show."""
    return Verdict(check, Validity.INVALID, because, tuple(examples)[:EXAMPLES_MAX])


def when(evidence: Evidence, at_s: float) -> str:
    """A moment for people: seconds since the steady state."""
    return f"{at_s - evidence.steady_s:.3f} s"


def count(number: int, thing: str) -> str:
    """``1 read``, ``2 reads``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def works(evidence: Evidence, kinds: Collection[str]) -> list[WorkloadRecord]:
    """The workloads of those kinds."""
    return [work for work in evidence.works.values() if work.spec.kind in kinds]


def thin(evidence: Evidence, history: Sequence[Op], sides: Sides) -> str:
    """A sentence when too little was acknowledged on a side of a fault; empty otherwise.

    Without any fault the steady state is what has two sides.
    """
    acks = [op.at_s for op in history if op.outcome is Outcome.OK]
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
    check: str,
    evidence: Evidence,
    kinds: Collection[str],
    judge: Callable[[WorkloadRecord], Verdict],
    sides: Sides | None = None,
) -> Verdict:
    """All workloads of those kinds, judged one by one; what is thin is never valid."""
    parts: list[Verdict] = []
    for work in works(evidence, kinds):
        verdict = judge(work)
        if verdict.validity is Validity.VALID and sides is not None:
            scarce = thin(evidence, work.history, sides)
            verdict = unknown(check, scarce) if scarce else verdict
        because = f"{work.spec.name}: {verdict.because}"
        parts.append(Verdict(check, verdict.validity, because, verdict.counterexample))
    if not parts:
        return unknown(check, f"there was no workload of the kinds {', '.join(sorted(kinds))}")
    return together(check, parts)


def together(check: str, parts: Sequence[Verdict]) -> Verdict:
    """The worst of several judgements, with the reasons of those that were as bad."""
    found = worst(parts)
    alike = [part for part in parts if part.validity is found]
    examples = tuple(one for part in alike for one in part.counterexample)
    return Verdict(check, found, "; ".join(part.because for part in alike), examples[:EXAMPLES_MAX])

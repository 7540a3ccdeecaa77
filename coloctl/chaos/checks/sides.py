"""Check the workloads of a run one by one; each needs acknowledgements on each side of a fault.

Called by the checks of `chaos.checks` that read the histories of `chaos.workloads`. Example: a
client that was never served after the fault has lost no acknowledged record, which proves nothing.
Invariant: a workload with too little on a side of a fault is never valid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from pydantic import Field

from coloctl.chaos.checks.verdict import Validity, Verdict, unknown, worst
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.workloads.history import Op, OpStatus


class Sides(Params):
    """The acknowledgements that each workload must have before, during and after each fault."""

    before_min: int = Field(default=1, ge=0)
    during_min: int = Field(default=0, ge=0)  #: of faults that last until they are healed
    after_min: int = Field(default=1, ge=0)


def works(evidence: Evidence, kinds: Collection[str]) -> list[WorkloadRecord]:
    """Return the workloads of those kinds."""
    return [work for work in evidence.works.values() if work.spec.kind in kinds]


def thin(evidence: Evidence, history: Iterable[Op], sides: Sides) -> str:
    """Return a sentence if too little was acknowledged on a side of a fault; empty otherwise.

    Without any fault the steady state is what has two sides. Clients that come in mid-run have
    nothing to do with the faults before them; those after the last fault only need to be served.
    """
    history = list(history)
    acks = [op.at_s for op in history if op.outcome is OpStatus.OK]
    came_s = min((op.at_s for op in history), default=evidence.steady_s)
    faults = [(x.fault.name, x.at_s, x.healed_s) for x in evidence.faults if x.at_s >= came_s]
    if not faults and came_s > evidence.steady_s:
        scarce = len(acks) < sides.after_min
        return f"only {len(acks)} acknowledged, of {sides.after_min} that are needed" * scarce
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
    sides: Sides,
) -> Verdict:
    """Check the workloads of those kinds one by one, and return the worst verdict."""
    parts: list[Verdict] = []
    for work in works(evidence, kinds):
        verdict = check_one(work)
        if verdict.validity is Validity.VALID and (scarce := thin(evidence, work.history, sides)):
            verdict = unknown(scarce)
        parts.append(replace(verdict, because=f"{work.spec.name}: {verdict.because}"))
    if not parts:
        return unknown(f"there was no workload of the kinds {', '.join(sorted(kinds))}")
    found = worst(parts)
    alike = [part for part in parts if part.validity is found]
    examples = tuple(one for part in alike for one in part.counterexample)
    return Verdict("", found, "; ".join(part.because for part in alike), examples)


def numbers(history: Iterable[Op], status: OpStatus) -> set[tuple[int, int]]:
    """Return client and number of each operation that has a line of that status."""
    return {(op.client, op.n) for op in history if op.outcome is status and op.n >= 0}

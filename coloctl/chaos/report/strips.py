"""Find the marks of a picture: faults, diagnoses, fences, promotions, protected again; pure.

Called by `chaos.report.chart`, and by `chaos.report.lanes` for its marks; reads the evidence and
its `chaos.evidence.chronicle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.model.timeline import FailoverStep, Timeline

#: The kinds of marks, in the order in which they follow a fault, with their names.
KINDS = {
    "fault": "fault",
    "seen": "diagnosis",
    FailoverStep.FENCED: "fence",
    FailoverStep.PROMOTED: "promotion",
    "protected": "protected again",
}


@dataclass(frozen=True)
class Mark:
    """An event at one moment; a fault lasts until ``to_s``."""

    kind: str
    at_s: float
    label: str
    to_s: float | None = None


def marks(evidence: Evidence, place: Callable[[str], str] = str) -> list[Mark]:
    """Return every mark, in order; ``place`` names a node, with its machine where it has one."""
    found = [*_faults(evidence, place), *_diagnoses(evidence), *_steps(evidence, place)]
    found += [
        Mark("protected", one.at_s, "in COLO")
        for one in evidence.chronicle.states
        if one.after == "colo"
    ]
    return sorted(found, key=lambda mark: mark.at_s)


def _faults(evidence: Evidence, place: Callable[[str], str]) -> Iterator[Mark]:
    for one in evidence.faults:
        target = one.role or one.fault.target
        where = f" (node {', '.join(map(place, one.nodes))})" if one.nodes else ""
        yield Mark("fault", one.at_s, f"{one.fault.kind} {target}{where}", one.healed_s)


def _diagnoses(evidence: Evidence) -> Iterator[Mark]:
    for one in evidence.events:
        if one.name == "DIAGNOSIS" and one.data["diagnosis"] != "healthy":
            yield Mark("seen", one.at_s, str(one.data["diagnosis"]))


def _steps(evidence: Evidence, place: Callable[[str], str]) -> Iterator[Mark]:
    """Read steps from timelines, which are exact; from events where a takeover never ended."""
    takeovers = evidence.chronicle.takeovers
    for takeover in takeovers:
        nodes = {FailoverStep.FENCED: takeover.lost, FailoverStep.PROMOTED: takeover.survivor}
        for step, node in nodes.items():
            if step in takeover.steps:
                yield Mark(step, takeover.done_s(step), f"node {place(node)} {step}")
    for one in evidence.events:
        if one.name != "STEP" or any(_within(takeover, one.at_s) for takeover in takeovers):
            continue
        if (reached := one.data["step"]) in (FailoverStep.FENCED, FailoverStep.PROMOTED):
            yield Mark(reached, one.at_s, reached)


def _within(takeover: Timeline, at_s: float) -> bool:
    last_s = max(takeover.steps.values(), default=0.0) / 1000
    return takeover.began_s - 0.1 <= at_s <= takeover.began_s + last_s + 0.5

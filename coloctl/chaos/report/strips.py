"""Find the marks of a picture: faults, diagnoses, fences, promotions, protected again; pure.

Called by `chaos.report.chart`; reads the evidence and its `chaos.evidence.chronicle`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Takeover

#: The kinds of marks, in the order in which they follow a fault, with their names.
KINDS = {
    "fault": "fault",
    "seen": "diagnosis",
    "fenced": "fence",
    "promoted": "promotion",
    "protected": "protected again",
}


@dataclass(frozen=True)
class Mark:
    """An event at one moment; a fault lasts until ``to_s``."""

    kind: str
    at_s: float
    label: str
    to_s: float | None = None


def marks(evidence: Evidence) -> list[Mark]:
    """Return every mark, in order."""
    found = [*_faults(evidence), *_diagnoses(evidence), *_steps(evidence)]
    found += [
        Mark("protected", one.at_s, "in COLO")
        for one in evidence.chronicle.states
        if one.after == "colo"
    ]
    return sorted(found, key=lambda mark: mark.at_s)


def _faults(evidence: Evidence) -> Iterator[Mark]:
    for one in evidence.faults:
        target = one.role or one.fault.target
        where = f" (node {', '.join(one.nodes)})" if one.nodes else ""
        yield Mark("fault", one.at_s, f"{one.fault.kind} {target}{where}", one.healed_s)


def _diagnoses(evidence: Evidence) -> Iterator[Mark]:
    for one in evidence.events:
        if one.name == "DIAGNOSIS" and one.data["diagnosis"] != "healthy":
            yield Mark("seen", one.at_s, str(one.data["diagnosis"]))


def _steps(evidence: Evidence) -> Iterator[Mark]:
    """Read steps from timelines, which are exact; from events where a takeover never ended."""
    takeovers = evidence.chronicle.takeovers
    for takeover in takeovers:
        for kind, node in (("fenced", takeover.lost), ("promoted", takeover.survivor)):
            if kind in takeover.steps:
                yield Mark(kind, takeover.done_s(kind), f"node {node} {kind}")
    for one in evidence.events:
        step = one.data.get("step", "") if one.name == "STEP" else ""
        if step in ("fenced", "promoted") and not any(_within(t, one.at_s) for t in takeovers):
            yield Mark(step, one.at_s, step)


def _within(takeover: Takeover, at_s: float) -> bool:
    last_s = max(takeover.steps.values(), default=0.0) / 1000
    return takeover.began_s - 0.1 <= at_s <= takeover.began_s + last_s + 0.5

"""What happened to the pair, from its events: marks, and what each node was when; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Takeover
from coloctl.model.pair import NODES

#: The kinds of marks, in the order in which they follow a fault, with what they are called.
KINDS = {
    "fault": "fault",
    "seen": "diagnosis",
    "fenced": "fence",
    "promoted": "promotion",
    "protected": "protected again",
}


@dataclass(frozen=True)
class Mark:
    """Something happened at that moment; a fault lasts until ``to_s``."""

    kind: str
    at_s: float
    label: str
    to_s: float | None = None


@dataclass(frozen=True)
class Strip:
    """A state that lasted; ``what`` is its name."""

    what: str
    from_s: float
    to_s: float


def marks(evidence: Evidence) -> list[Mark]:
    """Every mark, in order."""
    return sorted(
        [*_faults(evidence), *_seen(evidence), *_steps(evidence)], key=lambda mark: mark.at_s
    )


def _faults(evidence: Evidence) -> Iterator[Mark]:
    for one in evidence.faults:
        whom = one.role or one.fault.target
        where = f" (node {', '.join(one.nodes)})" if one.nodes else ""
        yield Mark("fault", one.at_s, f"{one.fault.kind} {whom}{where}", one.healed_s)


def _seen(evidence: Evidence) -> Iterator[Mark]:
    for one in evidence.events:
        if one.name == "DIAGNOSIS" and one.data["diagnosis"] != "healthy":
            yield Mark("seen", one.at_s, str(one.data["diagnosis"]))
        elif one.name == "STATE_CHANGED" and one.data["after"] == "colo":
            yield Mark("protected", one.at_s, "in COLO")


def _steps(evidence: Evidence) -> Iterator[Mark]:
    """From the timelines, which are exact; from the events where a takeover never ended."""
    told = takeovers(evidence)
    for takeover in told:
        for kind, node in (("fenced", takeover.lost), ("promoted", takeover.survivor)):
            if kind in takeover.steps:
                yield Mark(kind, takeover.done_s(kind), f"node {node} {kind}")
    for one in evidence.events:
        step = one.data.get("step", "") if one.name == "STEP" else ""
        if step in ("fenced", "promoted") and not any(_within(each, one.at_s) for each in told):
            yield Mark(step, one.at_s, step)


def _within(takeover: Takeover, at_s: float) -> bool:
    last_s = max(takeover.steps.values(), default=0.0) / 1000
    return takeover.began_s - 0.1 <= at_s <= takeover.began_s + last_s + 0.5


def takeovers(evidence: Evidence) -> list[Takeover]:
    """Those of the evidence; where it has none, those that the events tell."""
    return list(evidence.takeovers) or [
        Takeover.of(one.data["timeline"]) for one in evidence.events if one.name == "FAILED_OVER"
    ]


def protection(evidence: Evidence, to_s: float) -> list[Strip]:
    """The protection of the pair over time."""
    moves = [one for one in evidence.events if one.name == "STATE_CHANGED"]
    if not moves:
        return []
    ends = [*(one.at_s for one in moves[1:]), max(to_s, moves[-1].at_s)]
    return [
        Strip(str(one.data["after"]), one.at_s, end)
        for one, end in zip(moves, ends, strict=True)
        if end > one.at_s
    ]


def nodes(evidence: Evidence, to_s: float) -> dict[str, list[Strip]]:
    """What each node was: primary, secondary, joining, dead or absent."""
    told = {node: _merged(_changes(evidence, node), to_s) for node in NODES}
    return {node: strips for node, strips in told.items() if strips}


def _changes(evidence: Evidence, node: str) -> list[tuple[float, str]]:
    """When the node became what, in order."""
    found: list[tuple[float, str]] = []
    for takeover in takeovers(evidence):
        if node == takeover.survivor:
            found.append((takeover.done_s("promoted"), "primary"))
        elif node == takeover.lost:
            found.append((takeover.done_s("fenced"), "dead"))
    for one in evidence.events:
        if one.name == "NODE_DEAD" and one.data["node"] == node:
            found.append((one.at_s, "dead"))
            continue
        if one.name not in ("STEP", "STATE_CHANGED"):
            continue
        primary = primary_at(evidence, one.at_s)
        if one.name == "STEP" and one.data["step"] == "secondary" and primary != node:
            found.append((one.at_s, "joining"))
        elif one.name == "STATE_CHANGED":
            after, fact = one.data["after"], one.data["fact"]
            if after == "down":
                found.append((one.at_s, "absent"))
            elif after == "colo" or fact == "guest-started":
                other = "secondary" if after == "colo" else "absent"
                found.append((one.at_s, "primary" if primary == node else other))
            elif fact == "protection-abandoned" and primary != node:
                found.append((one.at_s, "absent"))
    return sorted(found)


def _merged(changes: Sequence[tuple[float, str]], to_s: float) -> list[Strip]:
    strips: list[Strip] = []
    for (at_s, what), end_s in zip(
        changes, [*(one for one, _ in changes[1:]), max(to_s, *(one for one, _ in changes), to_s)]
        if changes else [], strict=True,
    ):  # fmt: skip
        if strips and strips[-1].what == what:
            strips[-1] = Strip(what, strips[-1].from_s, end_s)
        elif end_s > at_s:
            strips.append(Strip(what, at_s, end_s))
    return strips


def primary_at(evidence: Evidence, at_s: float) -> str:
    """The node whose output reached the clients then; the promoted one from its promotion on."""
    told = takeovers(evidence)
    before = [one for one in told if one.done_s("promoted") <= at_s]
    if before:
        return max(before, key=_began).survivor
    if told:
        first = min(told, key=_began)
        return first.lost if first.role_before == "secondary" else first.survivor
    said = (one.data["node"] for one in evidence.events if one.name == "CHECKPOINT")
    seen = (n["name"] for n in evidence.view.get("nodes", ()) if n["role"] == "primary")
    return str(next(said, next(seen, "a")))


def _began(takeover: Takeover) -> float:
    return takeover.began_s

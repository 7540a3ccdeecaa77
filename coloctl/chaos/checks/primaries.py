"""One primary at a time: whose frames reached the LAN, and who was promoted in which generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from coloctl.chaos.checks import lives
from coloctl.chaos.checks.check import Check, Params, count, invalid, unknown, valid, when
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.chronicle import BACKLOG_S
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FrameRun
from coloctl.model.pair import NODES, Role

CHECK = "one_primary"


class Heard(Params):
    """``heard``: the last primary must have been heard after the last fault."""

    heard: bool = True


@dataclass(frozen=True)
class Reign:
    """``node`` and no other may be heard from ``from_s`` to ``to_s``."""

    node: str
    from_s: float
    to_s: float


def reigns(evidence: Evidence) -> list[Reign]:
    """Who was the primary when, by what the supervisor said and wrote; begins for all time.

    A node's reign ends when it is fenced for a survivor that is promoted.
    """
    turns = [(one.done_s("fenced"), one.survivor) for one in lives.takeovers(evidence)]
    turns += [
        (one.fence.mono_s, _other(one.lost))
        for one in lives.promotions(evidence.journal)
        if one.fence is not None
    ]
    # A guest that was started anew, and once more each survivor behind its promotion.
    turns += [
        (one.mono_s, one.node)
        for one in evidence.journal
        if one.data.get("launched") == Role.PRIMARY
    ]
    turns.sort()
    begin = _first(evidence, turns)
    changes = [(-math.inf, begin)] if begin else []
    for at_s, node in turns:
        if not changes or changes[-1][1] != node:
            changes.append((at_s, node))
    ends = [*(at_s for at_s, _ in changes[1:]), math.inf][: len(changes)]
    return [Reign(node, at_s, end) for (at_s, node), end in zip(changes, ends, strict=True)]


def _first(evidence: Evidence, turns: Sequence[tuple[float, str]]) -> str:
    """The primary before any takeover; empty when nothing was heard by then."""
    first = evidence.frames[0] if evidence.frames else None
    if first is not None and (not turns or first.first_s < turns[0][0]):
        return first.node
    return ""


def _other(node: str) -> str:
    return next(name for name in NODES if name != node)


def one_primary(evidence: Evidence, params: Heard) -> Verdict:
    """Frames came from one node at a time, and every promotion had a greater number."""
    wrong = _strays(evidence) + _generations(evidence)
    if wrong:
        return invalid(CHECK, "two nodes were primary", wrong)
    if not evidence.frames:
        return unknown(CHECK, "nobody watched the guest's LAN")
    if not evidence.journal:
        return unknown(CHECK, "there is no journal to tell the generations")
    last = reigns(evidence)[-1]
    since_s = max(last.from_s, evidence.last_fault_s or evidence.steady_s)
    since = when(evidence, since_s)
    if params.heard and not any(
        one.node == last.node and one.last_s > since_s for one in evidence.frames
    ):
        return unknown(CHECK, f"node {last.node} was not heard on the LAN after {since}")
    frames = sum(one.frames for one in evidence.frames)
    told = count(len(lives.promotions(evidence.journal)), "promotion")
    return valid(CHECK, f"{frames} frames, each from the primary of its time; {told}")


def _strays(evidence: Evidence) -> list[str]:
    """A sentence for each spell of a node that was not the primary when it began or ended."""
    periods = reigns(evidence)
    return [
        f"{when(evidence, spell.first_s)} to {when(evidence, spell.last_s)}: "
        f"{count(spell.frames, 'frame')} of node {spell.node}, {_instead(evidence, periods, spell)}"
        for spell in evidence.frames
        if not all(_may(periods, spell.node, at_s) for at_s in (spell.first_s, spell.last_s))
    ]


def _may(periods: Sequence[Reign], node: str, at_s: float) -> bool:
    # What was on its way when the fence fell may still arrive.
    return any(one.node == node and one.from_s <= at_s <= one.to_s + BACKLOG_S for one in periods)


def _instead(evidence: Evidence, periods: Sequence[Reign], spell: FrameRun) -> str:
    at_s = next(one for one in (spell.first_s, spell.last_s) if not _may(periods, spell.node, one))
    reign = next((one for one in periods if one.from_s <= at_s <= one.to_s), None)
    if reign is None:
        return "before any node was promoted"
    since = (
        "from the begin" if reign.from_s == -math.inf else f"since {when(evidence, reign.from_s)}"
    )
    return f"while node {reign.node} was the primary {since}"


def _generations(evidence: Evidence) -> list[str]:
    """A sentence for each promotion whose number is not greater than the one before."""
    intents = [one.intent for one in lives.promotions(evidence.journal)]
    wrong = [
        f"journal line {later.seq}: promoted in generation {later.generation or 0}, after "
        f"generation {earlier.generation or 0}"
        for earlier, later in pairwise(intents)
        if (later.generation or 0) <= (earlier.generation or 0)
    ]
    told = [
        said.data["timeline"]
        for said in evidence.events
        if said.name == "FAILED_OVER" and said.data["timeline"].get("generation")
    ]
    return wrong + [
        f"generation {later['generation']} of node {later['survivor']} was announced after "
        f"generation {earlier['generation']} of node {earlier['survivor']}"
        for earlier, later in pairwise(told)
        if later["generation"] <= earlier["generation"]
    ]


CHECKS = {
    CHECK: Check(
        "The guest's frames reached its LAN from one node at a time, and from no node after it "
        "was fenced; every promotion has a generation of its own, greater than all before.",
        one_primary,
        Heard,
    )
}

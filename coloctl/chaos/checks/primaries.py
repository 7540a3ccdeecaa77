"""Check that one node at a time was the primary, by its frames on the LAN and by generations.

A node is the primary from the proof that the other one is dead, or from the start of the guest on
it. Its frames may reach the LAN in that period only. Example: node a is proven dead at 5.110 s; a
frame of node a at 15.1 s comes from a second primary. A frame that a dead node sent may still wait
in a queue of the kernel, which is what `BACKLOG_S` allows for.
Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; reads the periods from
`chaos.evidence.chronicle`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from coloctl.chaos.checks.verdict import (
    Verdict,
    check,
    count,
    invalid,
    unknown,
    valid,
    when,
)
from coloctl.chaos.evidence.chronicle import BACKLOG_S, PrimaryPeriod
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FrameRun
from coloctl.chaos.scenario.values import Params


class Heard(Params):
    """``heard``: frames of the last primary must have been seen after the last fault."""

    heard: bool = True


@check(Heard)
def one_primary(evidence: Evidence, params: Heard) -> Verdict:
    """Require frames on the LAN from one node at a time, from no node after it was fenced, and a
    generation for every promotion that is greater than all before.
    """
    wrong = _strays(evidence) + _generations(evidence)
    if wrong:
        return invalid("two nodes were primary", wrong)
    if not evidence.frames:
        return unknown("the guest's LAN was not watched")
    if not evidence.journal:
        return unknown("there is no journal that shows the generations")
    last = evidence.chronicle.primaries[-1]
    since_s = max(last.from_s, evidence.last_fault_s or evidence.steady_s)
    if params.heard and not any(
        one.node == last.node and one.last_s > since_s for one in evidence.frames
    ):
        return unknown(f"node {last.node} was not heard on the LAN after {when(evidence, since_s)}")
    frames = sum(one.frames for one in evidence.frames)
    promotions = count(len(evidence.chronicle.promotions), "promotion")
    return valid(f"{frames} frames, each from the primary of its time; {promotions}")


def _strays(evidence: Evidence) -> list[str]:
    """Describe each run of frames of a node that was not primary when it began or ended."""
    periods = evidence.chronicle.primaries
    return [
        f"{when(evidence, run.first_s)} to {when(evidence, run.last_s)}: "
        f"{count(run.frames, 'frame')} of node {run.node}, {_instead(evidence, periods, run)}"
        for run in evidence.frames
        if not all(_may(periods, run.node, at_s) for at_s in (run.first_s, run.last_s))
    ]


def _may(periods: Sequence[PrimaryPeriod], node: str, at_s: float) -> bool:
    return any(one.node == node and one.from_s <= at_s <= one.to_s + BACKLOG_S for one in periods)


def _instead(evidence: Evidence, periods: Sequence[PrimaryPeriod], run: FrameRun) -> str:
    at_s = next(one for one in (run.first_s, run.last_s) if not _may(periods, run.node, one))
    period = next((one for one in periods if one.from_s <= at_s <= one.to_s), None)
    if period is None:
        return "before any node was promoted"
    since = (
        "from the begin" if period.from_s == -math.inf else f"since {when(evidence, period.from_s)}"
    )
    return f"while node {period.node} was the primary {since}"


def _generations(evidence: Evidence) -> list[str]:
    """Describe each promotion whose number is not greater than the one before."""
    intents = [one.intent for one in evidence.chronicle.promotions]
    wrong = [
        f"journal line {later.seq}: promoted in generation {later.generation or 0}, after "
        f"generation {earlier.generation or 0}"
        for earlier, later in pairwise(intents)
        if (later.generation or 0) <= (earlier.generation or 0)
    ]
    announced = [
        event.data["timeline"]
        for event in evidence.events
        if event.name == "FAILED_OVER" and event.data["timeline"].get("generation")
    ]
    return wrong + [
        f"generation {later['generation']} of node {later['survivor']} was announced after "
        f"generation {earlier['generation']} of node {earlier['survivor']}"
        for earlier, later in pairwise(announced)
        if later["generation"] <= earlier["generation"]
    ]

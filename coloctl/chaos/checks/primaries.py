"""Check that one node at a time was the primary, by its frames on the LAN and by generations.

A node is the primary from the proof that the other one is dead, or from the start of the guest on
it. Its frames may reach the LAN in that period only. Example: node a is proven dead at 5.110 s; a
frame of node a at 15.1 s comes from a second primary. A frame that a dead node sent may still wait
in a queue of the kernel, for which `BACKLOG_S` allows 5 ms. Registered in `chaos.checks`, whose
checks `chaos.run.runner` calls, and given parameters by `bench.failover`; reads the periods from
`chaos.evidence.chronicle`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid, when
from coloctl.chaos.evidence.chronicle import BACKLOG_S
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.scenario.tables import Params


class Heard(Params):
    """``heard``: frames of the last primary must have been seen after the last fault."""

    heard: bool = True


@check(Heard)
def one_primary(evidence: Evidence, params: Heard) -> Verdict:
    """Require frames on the LAN from one node at a time, from no node after it was fenced, and a
    generation for every promotion that is greater than that of the one before.

    Unknown when the LAN was not watched or there is no journal, and with ``heard`` when the last
    primary sent no frame since it became one and since the last fault.
    """
    wrong = [*_strays(evidence), *_generations(evidence)]
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


def _strays(evidence: Evidence) -> Iterator[str]:
    """Describe each run of frames of a node that was not primary when it began or ended."""
    for run in evidence.frames:
        outside = [at_s for at_s in (run.first_s, run.last_s) if not _may(evidence, run.node, at_s)]
        if outside:
            yield (
                f"{when(evidence, run.first_s)} to {when(evidence, run.last_s)}: "
                f"{count(run.frames, 'frame')} of node {run.node}, {_instead(evidence, outside[0])}"
            )


def _may(evidence: Evidence, node: str, at_s: float) -> bool:
    return any(
        one.node == node and one.from_s <= at_s <= one.to_s + BACKLOG_S
        for one in evidence.chronicle.primaries
    )


def _instead(evidence: Evidence, at_s: float) -> str:
    periods = evidence.chronicle.primaries
    period = next(one for one in periods if one.from_s <= at_s <= one.to_s)
    known = period.from_s != -math.inf
    since = f"since {when(evidence, period.from_s)}" if known else "from the begin"
    return f"while node {period.node} was the primary {since}"


def _generations(evidence: Evidence) -> Iterator[str]:
    """Describe each promotion whose generation is not greater than that of the one before.

    Promotions of the journal are compared, and those that events announced.
    """
    for earlier, later in pairwise(one.intent for one in evidence.chronicle.promotions):
        before, after = earlier.generation or 0, later.generation or 0
        if after <= before:
            yield (
                f"journal line {later.seq}: promoted in generation {after}, after generation "
                f"{before}"
            )
    timelines = (one.data["timeline"] for one in evidence.events if one.name == "FAILED_OVER")
    for one, two in pairwise(timeline for timeline in timelines if timeline.get("generation")):
        if two["generation"] <= one["generation"]:
            yield (
                f"generation {two['generation']} of node {two['survivor']} was announced after "
                f"generation {one['generation']} of node {one['survivor']}"
            )

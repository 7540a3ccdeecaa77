"""Check that a corrupted secondary was noticed in time, and that strangers got nothing.

No sound secondary may be reported as diverged; no other local user may get a part of the pair.
Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; counts checkpoints by
`chaos.evidence.chronicle`.
"""

from __future__ import annotations

import math

from pydantic import Field

from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid, when
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord, ObservedEvent, StrangerGains
from coloctl.chaos.scenario.tables import Params
from coloctl.model.observation import Diagnosis

#: Kinds of faults: it corrupts a secondary; it is another user of a host.
RUIN, STRANGER = "ruin", "stranger"


class Noticed(Params):
    """``checkpoints``: how many may be completed before the divergence is diagnosed."""

    checkpoints: int = Field(default=5, ge=1)


def _diagnoses(evidence: Evidence, *kinds: Diagnosis) -> list[ObservedEvent]:
    return [
        one
        for one in evidence.events
        if one.name == "DIAGNOSIS" and one.data.get("diagnosis") in kinds
    ]


def _injected(evidence: Evidence, kind: str) -> list[FaultRecord]:
    return [one for one in evidence.faults if one.fault.kind == kind and not one.missed]


@check(Noticed)
def ruin_noticed(evidence: Evidence, params: Noticed) -> Verdict:
    """Require that a corrupted secondary is diagnosed within `checkpoints` checkpoints."""
    corrupted = _injected(evidence, RUIN)
    if not corrupted or not evidence.events:
        return unknown("no secondary was corrupted, or no event was received")
    # A secondary that died of its corruption has been noticed, too.
    kinds = (Diagnosis.SECONDARY_DIVERGED, Diagnosis.SECONDARY_DEAD)
    noticed = [one.at_s for one in _diagnoses(evidence, *kinds)]
    each, late = [], []
    for one in corrupted:
        until_s = min((o.at_s for o in corrupted if o.at_s > one.at_s), default=math.inf)
        found = next((at_s for at_s in noticed if one.at_s <= at_s < until_s), None)
        if found is None:
            late.append(f"{when(evidence, one.at_s)}: {one.fault.name} was never noticed")
            continue
        taken = evidence.chronicle.checkpoints(one.at_s, found)
        line = f"after {count(taken, 'checkpoint')} and {found - one.at_s:.2f} s"
        each.append(line)
        if taken > params.checkpoints:
            late.append(f"{when(evidence, one.at_s)}: {one.fault.name} was noticed {line}")
    number = count(len(corrupted), "corruption")
    if late:
        return invalid(f"of {number} {len(late)} noticed too late", late)
    return valid(f"{number} noticed: {', '.join(each)}")


@check()
def none_accused(evidence: Evidence, _: Params) -> Verdict:
    """Require that no sound secondary is reported as diverged."""
    if not evidence.events:
        return unknown("no event was received")
    corrupted = _injected(evidence, RUIN)
    wrong = [
        f"{when(evidence, one.at_s)}: {one.data.get('evidence', '')}"
        for one in _diagnoses(evidence, Diagnosis.SECONDARY_DIVERGED)
        if not any(fault.at_s <= one.at_s for fault in corrupted)
    ]
    if wrong:
        return invalid(f"{count(len(wrong), 'sound secondary')} reported as diverged", wrong)
    return valid("no sound secondary was reported as diverged")


@check()
def stranger_got_nothing(evidence: Evidence, _: Params) -> Verdict:
    """Require that another local user gets no part of the pair: no connection to a port of it, and
    no request of it taken.
    """
    there = _injected(evidence, STRANGER)
    if not there:
        return unknown("there was no stranger")
    wrong = [
        f"{when(evidence, one.at_s)}: {one.note}"
        for one in there
        if not isinstance(one.result, StrangerGains) or one.result.got
    ]
    if wrong:
        return invalid(f"{count(len(wrong), 'stranger')} got a part of the pair", wrong)
    return valid(f"{count(len(there), 'stranger')} got nothing")

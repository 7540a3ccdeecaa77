"""Check which states the pair went through, how many takeovers there were, and how it ended.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; reads states and takeovers from
`chaos.evidence.chronicle`.
"""

from __future__ import annotations

from pydantic import Field

from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid, when
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.scenario.tables import Params
from coloctl.model.protection import Protection


class AtEnd(Params):
    """``state``: the state in which the pair must be."""

    state: str = Protection.COLO.value


class Failovers(Params):
    """``min`` and ``max``: how many takeovers there must be."""

    min: int = Field(default=0, ge=0)
    max: int | None = Field(default=None, ge=0)


@check(AtEnd)
def protected_at_end(evidence: Evidence, params: AtEnd) -> Verdict:
    """Require that the pair ends in COLO, or in `state`."""
    view = evidence.view
    if view is None:
        return unknown("no supervisor answered with the state of the pair in the end")
    if view.protection != params.state:
        return invalid(f"the pair is {view.protection}, not {params.state}", [view.reason])
    return valid(f"the pair is {view.protection}")


@check(Failovers)
def failovers(evidence: Evidence, params: Failovers) -> Verdict:
    """Require `min` to `max` takeovers."""
    if not evidence.events and not evidence.journal:
        return unknown("there are neither events nor a journal of the run")
    found = evidence.chronicle.takeovers
    each = [
        f"{when(evidence, one.began_s)}: node {one.survivor} took over from node {one.lost} "
        f"({one.cause})"
        for one in found
    ]
    most = "any number" if params.max is None else str(params.max)
    because = f"{count(len(found), 'takeover')}, {params.min} to {most} expected"
    if len(found) < params.min or (params.max is not None and len(found) > params.max):
        return invalid(because, each)
    return valid(because)


@check()
def never_failed(evidence: Evidence, _: Params) -> Verdict:
    """Require that the pair was never in the state failed, which only an operator leaves."""
    states = evidence.chronicle.states
    reasons = dict.fromkeys(one.reason for one in states if one.after == Protection.FAILED)
    if not reasons and evidence.view and evidence.view.protection is Protection.FAILED:
        reasons = {evidence.view.reason: None}
    if reasons:
        return invalid("the pair failed", reasons)
    if not states:
        return unknown("neither events nor a journal show any state")
    return valid(f"never failed, in {count(len(states), 'change')} of state")

"""Which states the pair went through, how often a node took over, and how it ended."""

from __future__ import annotations

from pydantic import Field

from coloctl.chaos.checks import lives
from coloctl.chaos.checks.check import Check, Params, count, invalid, unknown, valid, when
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.model.protection import Protection

AT_END, FAILOVERS, NEVER_FAILED = "protected_at_end", "failovers", "never_failed"


class AtEnd(Params):
    """``state``: what the pair should be in."""

    state: str = Protection.COLO.value


class Failovers(Params):
    """``min`` and ``max``: how many takeovers there should be."""

    min: int = Field(default=0, ge=0)
    max: int | None = Field(default=None, ge=0)


def protected_at_end(evidence: Evidence, params: AtEnd) -> Verdict:
    """The pair ended in that state."""
    found = evidence.view.get("protection")
    if found is None:
        return unknown(AT_END, "nobody could ask for the state of the pair in the end")
    if found != params.state:
        reason = str(evidence.view.get("reason", ""))
        return invalid(AT_END, f"the pair is {found}, not {params.state}", [reason])
    return valid(AT_END, f"the pair is {found}")


def failovers(evidence: Evidence, params: Failovers) -> Verdict:
    """As many takeovers as there should be."""
    if not evidence.events and not evidence.journal:
        return unknown(FAILOVERS, "neither events nor a journal tell of the run")
    found = lives.takeovers(evidence)
    told = [
        f"{when(evidence, one.began_s)}: node {one.survivor} took over from node {one.lost} "
        f"({one.cause})"
        for one in found
    ]
    most = "any number" if params.max is None else str(params.max)
    because = f"{count(len(found), 'takeover')}, {params.min} to {most} expected"
    if len(found) < params.min or (params.max is not None and len(found) > params.max):
        return invalid(FAILOVERS, because, told)
    return valid(FAILOVERS, because)


def never_failed(evidence: Evidence, _: Params) -> Verdict:
    """No failover and no protection ended in the state that only an operator leaves."""
    moves = lives.moves(evidence)
    failed = [one for one in moves if one.after == Protection.FAILED]
    if failed or evidence.view.get("protection") == Protection.FAILED:
        told = dict.fromkeys(one.reason for one in failed) or {str(evidence.view["reason"]): None}
        return invalid(NEVER_FAILED, "the pair failed", told)
    if not moves:
        return unknown(NEVER_FAILED, "neither events nor a journal tell of any state")
    return valid(NEVER_FAILED, f"never failed, in {count(len(moves), 'change')} of state")


CHECKS = {
    AT_END: Check("The pair ends in COLO, or in `state`.", protected_at_end, AtEnd),
    FAILOVERS: Check("There were `min` to `max` takeovers.", failovers, Failovers),
    NEVER_FAILED: Check("The pair was never in the state failed.", never_failed),
}

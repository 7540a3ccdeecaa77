"""Check how long clients waited because of a fault, and how long the guest ran unprotected.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; reads silences, states and
takeovers from `chaos.evidence.chronicle`. `outage_within` is stricter than the outage in a run's
document: every silence that ends within ``within_s`` after a fault counts, that of the next
protection too.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from coloctl.chaos.checks.verdict import Verdict, check, invalid, unknown, valid, when
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord
from coloctl.chaos.scenario.tables import Params


class OutageParams(Params):
    """``ms``: the longest silence; those that end within ``within_s`` after a fault count."""

    ms: float = Field(gt=0)
    within_s: float = Field(default=10.0, gt=0)


class Reprotected(Params):
    """``s``: from the begin of a takeover to COLO again."""

    s: float = Field(gt=0)


@check(OutageParams)
def outage_within(evidence: Evidence, params: OutageParams) -> Verdict:
    """Require that no fault made any client wait for longer than `ms` milliseconds."""
    if not evidence.faults:
        return unknown("no fault was injected")
    replies = evidence.chronicle.replies
    longest, wrong, unseen = 0.0, [], []
    for fault in evidence.faults:
        name, at_s = fault.fault.name, fault.at_s
        if not any(one.ended for one in replies.spanning(at_s, evidence.ended_s)):
            unseen.append(name)
        for work in evidence.works:
            by_s = at_s + params.within_s
            silent_ms = replies.outage(at_s, ended_by_s=by_s, workload=work).longest_ms or 0.0
            longest = max(longest, silent_ms)
            if silent_ms > params.ms:
                wrong.append(f"{work}: {silent_ms:.0f} ms of silence around {name}")
            wrong += _beyond(evidence, work, fault, params)
    if wrong:
        return invalid(f"clients waited for longer than {params.ms:g} ms", wrong)
    if unseen:
        return unknown(f"no client was served before and after {', '.join(unseen)}")
    return valid(f"the longest silence was {longest:.0f} ms, of {params.ms:g} ms")


def _beyond(
    evidence: Evidence, work: str, fault: FaultRecord, params: OutageParams
) -> Iterator[str]:
    """Describe clients that were served before the fault and not within the time after it."""
    for one in evidence.chronicle.replies.spanning(fault.at_s, evidence.ended_s, work):
        soon = one.ended and one.to_s <= fault.at_s + params.within_s
        if not soon and one.ms > params.ms:
            how = "and then served again" if one.ended else "and never served again"
            yield (
                f"{work}, client {one.client}: silent from {when(evidence, one.from_s)} for "
                f"{one.ms:.0f} ms {how}"
            )


@check(Reprotected)
def reprotected_within(evidence: Evidence, params: Reprotected) -> Verdict:
    """Require that after every takeover the pair was in COLO again within `s` seconds."""
    states = evidence.chronicle.states
    lost = {one.began_s for one in evidence.chronicle.takeovers}
    lost |= {one.at_s for one in states if (one.before, one.after) == ("colo", "failover")}
    if not lost:
        return unknown("the protection was never lost")
    again = [one.at_s for one in states if one.after == "colo"]
    seen_s = max([evidence.ended_s, *(event.at_s for event in evidence.events)])
    took, wrong, open_ = [], [], []
    for at_s in sorted(lost):
        back_s = next((one for one in again if one > at_s), None)
        lasted_s = (seen_s if back_s is None else back_s) - at_s
        if lasted_s > params.s:
            end = "" if back_s else " and to the end"
            wrong.append(f"lost at {when(evidence, at_s)}, unprotected for {lasted_s:.1f} s{end}")
        elif back_s is None:
            open_.append(f"lost at {when(evidence, at_s)}, watched for {lasted_s:.1f} s more")
        else:
            took.append(lasted_s)
    if wrong:
        return invalid(f"the guest was unprotected for over {params.s:g} s", wrong)
    if open_:
        return unknown(f"the run ended too early: {open_[0]}")
    return valid(f"protected again within {max(took):.1f} s, of {params.s:g} s")

"""How long clients waited because of a fault, and how long the guest ran without protection."""

from __future__ import annotations

from pydantic import Field

from coloctl.chaos.checks import lives, verdict
from coloctl.chaos.checks.check import Check, Params, invalid, unknown, valid, when
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Outcome

OUTAGE, REPROTECTED = "outage_within", "reprotected_within"


class Outage(Params):
    """``ms``: the longest silence; those that end within ``within_s`` after a fault are its own."""

    ms: float = Field(gt=0)
    within_s: float = Field(default=10.0, gt=0)


class Reprotected(Params):
    """``s``: from the begin of a takeover to COLO again."""

    s: float = Field(gt=0)


def outage_within(evidence: Evidence, params: Outage) -> Verdict:
    """No client of any workload was silent for longer because of a fault."""
    if not evidence.faults:
        return unknown(OUTAGE, "nothing was struck")
    longest, wrong, unseen = 0.0, [], []
    for struck in evidence.faults:
        fault, at_s = struck.fault.name, struck.at_s
        if not any(_both_sides(work, at_s) for work in evidence.works.values()):
            unseen.append(fault)
        for name, work in evidence.works.items():
            felt_ms = verdict.outage(work.history, at_s, params.within_s).longest_ms or 0.0
            longest = max(longest, felt_ms)
            if felt_ms > params.ms:
                wrong.append(f"{name}: {felt_ms:.0f} ms of silence around {fault}")
            wrong += _silent(evidence, work, at_s, params)
    if wrong:
        return invalid(OUTAGE, f"clients waited for longer than {params.ms:g} ms", wrong)
    if unseen:
        return unknown(OUTAGE, f"no client was served before and after {', '.join(unseen)}")
    return valid(OUTAGE, f"the longest silence was {longest:.0f} ms, of {params.ms:g} ms")


def _both_sides(work: WorkloadRecord, fault_s: float) -> bool:
    """A client was served before the fault, and the same one after it."""
    replies = [op for op in work.history if op.outcome is Outcome.OK]
    before = {op.client for op in replies if op.at_s <= fault_s}
    return any(op.client in before for op in replies if op.at_s > fault_s)


def _silent(evidence: Evidence, work: WorkloadRecord, fault_s: float, params: Outage) -> list[str]:
    """Clients that were served before the fault and not again in the time that is its own."""
    found = []
    for client in sorted({op.client for op in work.history}):
        told = [op for op in work.history if op.client == client]
        replies = [op.at_s for op in told if op.outcome is Outcome.OK]
        before = max((at_s for at_s in replies if at_s <= fault_s), default=None)
        after = min((at_s for at_s in replies if at_s > fault_s), default=None)
        closed = any(op.note.startswith("closed ") and op.at_s <= fault_s for op in told)
        if before is None or closed or (after is not None and after <= fault_s + params.within_s):
            continue
        silence_ms = ((after or max(evidence.ended_s, fault_s)) - before) * 1000
        if silence_ms > params.ms:
            how = "and then served again" if after else "and never served again"
            since = when(evidence, before)
            found.append(
                f"{work.spec.name}, client {client}: silent from {since} for "
                f"{silence_ms:.0f} ms {how}"
            )
    return found


def reprotected_within(evidence: Evidence, params: Reprotected) -> Verdict:
    """Whenever the protection was lost it was there again in time."""
    moves = lives.moves(evidence)
    lost = {one.began_s for one in lives.takeovers(evidence)}
    lost |= {one.at_s for one in moves if (one.before, one.after) == ("colo", "failover")}
    if not lost:
        return unknown(REPROTECTED, "the protection was never lost")
    again = sorted(one.at_s for one in moves if one.after == "colo")
    seen_s = max([evidence.ended_s, *(said.at_s for said in evidence.events)])
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
        return invalid(REPROTECTED, f"the guest was unprotected for over {params.s:g} s", wrong)
    if open_:
        return unknown(REPROTECTED, f"the run ended too early to tell: {open_[0]}")
    return valid(REPROTECTED, f"protected again within {max(took):.1f} s, of {params.s:g} s")


CHECKS = {
    OUTAGE: Check(
        "No fault made any client wait for longer than `ms` milliseconds.", outage_within, Outage
    ),
    REPROTECTED: Check(
        "After every takeover the pair was in COLO again within `s` seconds.",
        reprotected_within,
        Reprotected,
    ),
}

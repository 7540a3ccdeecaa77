"""Whether another local user of the pair's hosts got anything of it."""

from __future__ import annotations

from coloctl.chaos.checks.check import Check, Params, count, invalid, unknown, valid, when
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence

NAME = "stranger_got_nothing"
#: The fault that brings one, and how its note says that it got nothing.
STRANGER, NOTHING = "stranger", "it got nothing"


def stranger_got_nothing(evidence: Evidence, _: Params) -> Verdict:
    """No stranger was connected to a port of the pair, or had a request of it taken."""
    there = [one for one in evidence.faults if one.fault.kind == STRANGER and not one.missed]
    if not there:
        return unknown(NAME, "there was no stranger")
    wrong = [f"{when(evidence, one.at_s)}: {one.note}" for one in there if NOTHING not in one.note]
    if wrong:
        return invalid(NAME, f"{count(len(wrong), 'stranger')} got something", wrong)
    return valid(NAME, f"{count(len(there), 'stranger')} got nothing")


CHECKS = {NAME: Check("Another local user gets nothing of the pair.", stranger_got_nothing)}

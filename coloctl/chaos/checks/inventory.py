"""Check that primary and secondary hold the same after each new protection of the pair.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; reads the inventories of
`chaos.evidence.inventory`. All are compared with the first inventory after the first fault of the
run: before it the pair has no overlays of an earlier secondary. Example: 41 block nodes after the
first failover and 43 after the second one mean that two are never freed.
"""

from __future__ import annotations

from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid, when
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.scenario.tables import Params


@check(needs=("inventory",))
def nothing_grows(evidence: Evidence, _: Params) -> Verdict:
    """Require that each QEMU holds the same number of objects, devices, block nodes, exports and
    jobs whenever the pair is protected again after a fault.

    Fewer are invalid too. Unknown with fewer than two inventories after the first fault.
    """
    first_s = evidence.first_fault_s
    taken = [one for one in evidence.inventories if first_s is not None and one.at_s > first_s]
    if len(taken) < 2:
        return unknown("there are no two inventories after the first fault that can be compared")
    grown = [
        f"{when(evidence, one.at_s)}: {dict(one.counts)}, {dict(taken[0].counts)} after the first"
        for one in taken[1:]
        if one.counts != taken[0].counts
    ]
    if grown:
        return invalid(f"{count(len(grown), 'protection')} left other counts", grown)
    return valid(f"the same counts after {count(len(taken), 'protection')}")

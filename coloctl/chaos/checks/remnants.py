"""Check what is there in the end: on both disks, in the guest, and on the machine.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; reads the audits and the
comparison that `chaos.evidence.gather` collected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coloctl.chaos.checks.sides import numbers, works
from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid, when
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Audit
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.workloads.history import Op, OpStatus, operations


@check(needs=("disks",))
def disks_identical(evidence: Evidence, _: Params) -> Verdict:
    """Require that after a last checkpoint both nodes hold the same bytes."""
    if not evidence.differences:
        return unknown("the disks could not be compared")
    wrong = [
        f"{disk}: differs at byte {place}"
        for disk, places in sorted(evidence.differences.items())
        for place in places
    ]
    if wrong:
        return invalid(f"the disks differ in {count(len(wrong), 'place')}", wrong)
    return valid(f"{count(len(evidence.differences), 'disk')} the same on both nodes")


@check(needs=("audit",))
def disk_agrees_with_memory(evidence: Evidence, _: Params) -> Verdict:
    """Require that the guest, with its caches dropped, reads from its disk what its memory holds,
    and every record acknowledged by then.
    """
    history = [op for work in works(evidence, ("redis-appends",)) for op in work.history]
    wrong = [line for audit in evidence.audits for line in _disagrees(evidence, audit, history)]
    if wrong:
        return invalid("the disk and the memory of the guest are not the same", wrong)
    audits = _around(evidence)
    if isinstance(audits, str):
        return unknown(audits)
    records = sum(len(held) for held in audits[-1].disk.values())
    if not records:
        return unknown("the guest held no record that could be compared")
    return valid(f"{records} records on the disk as in memory, after the last fault")


def _disagrees(evidence: Evidence, audit: Audit, history: Sequence[Op]) -> Iterator[str]:
    """Describe each record that is missing on one side and was not under way meanwhile."""
    disk = {(client, n) for client, held in audit.disk.items() for n in held}
    memory = {(client, n) for client, held in audit.memory.items() for n in held}
    loaded = any(op.at_s > audit.at_s for op in history)
    under_way = {
        (one.begun.client, one.begun.n)
        for one in operations(history)
        if (loaded if one.ended is None else one.ended.at_s > audit.at_s)
    }
    at = when(evidence, audit.at_s)
    for client, n in sorted((disk ^ memory) - under_way):
        where = "on the disk only" if (client, n) in disk else "in memory only"
        yield f"{at}: client {client}: record {n} is {where}"
    acked = numbers([op for op in history if op.at_s <= audit.at_s], OpStatus.OK)
    for client, n in sorted(acked - (disk | memory)):
        yield f"{at}: client {client}: record {n} was acknowledged and is on neither"


def _around(evidence: Evidence) -> list[Audit] | str:
    """Return the audits, if there is one after the last fault; else a sentence."""
    audits = sorted(evidence.audits, key=lambda audit: audit.at_s)
    if not audits:
        return "there is no audit of the guest"
    if audits[-1].at_s <= (evidence.last_fault_s or evidence.steady_s):
        return "there is no audit of the guest after the last fault"
    return audits


@check(needs=("audit",))
def one_boot(evidence: Evidence, _: Params) -> Verdict:
    """Require that the guest booted once: its boot id never changed."""
    boots = {audit.boot_id: audit.at_s for audit in evidence.audits if audit.boot_id}
    if len(boots) > 1:
        each = [f"{when(evidence, at_s)}: boot id {boot}" for boot, at_s in boots.items()]
        return invalid("the guest booted again", each)
    audits = _around(evidence)
    if isinstance(audits, str):
        return unknown(audits)
    first_s = evidence.first_fault_s
    if not boots or len(audits) < 2 or (first_s is not None and audits[0].at_s >= first_s):
        return unknown("there is no audit of the guest before the first fault")
    if not all(audit.boot_id for audit in (audits[0], audits[-1])):
        return unknown("an audit of the guest has no boot id")
    return valid(f"one boot id in {count(len(audits), 'audit')}")


@check()
def no_leaks(evidence: Evidence, _: Params) -> Verdict:
    """Require that no process, namespace, tap, file or port of the run is left."""
    if evidence.remains is None:
        return unknown("the machine was not searched for what the run left")
    if evidence.remains:
        return invalid(f"{count(len(evidence.remains), 'thing')} left behind", evidence.remains)
    return valid("no process, namespace, tap, file or port is left")

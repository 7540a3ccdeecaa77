"""What is left in the end: on both disks, in the guest, and on the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coloctl.chaos.checks.check import Check, Params, count, invalid, unknown, valid, when, works
from coloctl.chaos.checks.records import by_client
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Audit
from coloctl.chaos.workloads.history import Op, Outcome

IDENTICAL, AGREES, ONE_BOOT, NO_LEAKS = (
    "disks_identical",
    "disk_agrees_with_memory",
    "one_boot",
    "no_leaks",
)


def disks_identical(evidence: Evidence, _: Params) -> Verdict:
    """Both nodes have the same bytes on every disk, after a last checkpoint."""
    if not evidence.differences:
        return unknown(IDENTICAL, "the disks could not be compared")
    wrong = [
        f"{disk}: differs at byte {place}"
        for disk, places in sorted(evidence.differences.items())
        for place in places
    ]
    if wrong:
        return invalid(IDENTICAL, f"the disks differ in {count(len(wrong), 'place')}", wrong)
    return valid(IDENTICAL, f"{count(len(evidence.differences), 'disk')} the same on both nodes")


def disk_agrees_with_memory(evidence: Evidence, _: Params) -> Verdict:
    """What the guest reads from its disk is what it remembers, and nothing acknowledged lacks."""
    history = [op for work in works(evidence, ("redis-appends",)) for op in work.history]
    wrong = [line for audit in evidence.audits for line in _disagrees(evidence, audit, history)]
    if wrong:
        return invalid(AGREES, "the disk and the memory of the guest are not the same", wrong)
    audits = _around(evidence)
    if isinstance(audits, str):
        return unknown(AGREES, audits)
    records = sum(len(held) for held in audits[-1].disk.values())
    if not records:
        return unknown(AGREES, "the guest held no record that could be compared")
    return valid(AGREES, f"{records} records on the disk as in memory, after the last fault")


def _disagrees(evidence: Evidence, audit: Audit, history: Sequence[Op]) -> Iterator[str]:
    """A sentence for each record that lacks on one side and was not under way meanwhile."""
    disk = {(c, n) for c, held in by_client(audit.disk).items() for n in held}
    memory = {(c, n) for c, held in by_client(audit.memory).items() for n in held}
    ended = {
        (op.client, op.n): op.at_s
        for op in history
        if op.n >= 0 and op.outcome is not Outcome.INVOKE
    }
    sent = {(op.client, op.n) for op in history if op.outcome is Outcome.INVOKE}
    loaded = any(op.at_s > audit.at_s for op in history)
    at = when(evidence, audit.at_s)
    for record in sorted(disk ^ memory):
        under_way = ended.get(record, 0.0) > audit.at_s or (
            loaded and record in sent and record not in ended
        )
        if not under_way:
            where = "on the disk only" if record in disk else "in memory only"
            yield f"{at}: client {record[0]}: record {record[1]} is {where}"
    acked = {
        (op.client, op.n)
        for op in history
        if op.outcome is Outcome.OK and op.n >= 0 and op.at_s <= audit.at_s
    }
    for client, n in sorted(acked - (disk & memory) - (disk ^ memory)):
        yield f"{at}: client {client}: record {n} was acknowledged and is on neither"


def _around(evidence: Evidence) -> list[Audit] | str:
    """The audits, when there is one after the last fault; else a sentence."""
    audits = sorted(evidence.audits, key=lambda audit: audit.at_s)
    if not audits:
        return "the guest was never asked about itself"
    if audits[-1].at_s <= (evidence.last_fault_s or evidence.steady_s):
        return "the guest was not asked about itself after the last fault"
    return audits


def one_boot(evidence: Evidence, _: Params) -> Verdict:
    """The guest never booted anew: it says the same boot id before the faults and behind them."""
    boots = {audit.boot_id: audit.at_s for audit in evidence.audits if audit.boot_id}
    if len(boots) > 1:
        told = [f"{when(evidence, at_s)}: boot id {boot}" for boot, at_s in boots.items()]
        return invalid(ONE_BOOT, "the guest booted anew", told)
    audits = _around(evidence)
    if isinstance(audits, str):
        return unknown(ONE_BOOT, audits)
    first_s = evidence.first_fault_s
    if not boots or len(audits) < 2 or (first_s is not None and audits[0].at_s >= first_s):
        return unknown(ONE_BOOT, "the guest was not asked about itself before the first fault")
    if not all(audit.boot_id for audit in (audits[0], audits[-1])):
        return unknown(ONE_BOOT, "the guest did not tell its boot id")
    return valid(ONE_BOOT, f"one boot id in {count(len(audits), 'audit')}")


def no_leaks(evidence: Evidence, _: Params) -> Verdict:
    """Nothing of the run is left on the machine."""
    if evidence.remains is None:
        return unknown(NO_LEAKS, "nobody looked at what the run left")
    if evidence.remains:
        left = count(len(evidence.remains), "thing")
        return invalid(NO_LEAKS, f"{left} left behind", evidence.remains)
    return valid(NO_LEAKS, "no process, namespace, tap, file or port is left")


CHECKS = {
    IDENTICAL: Check("After a last checkpoint both nodes hold the same bytes.", disks_identical),
    AGREES: Check(
        "With its caches dropped, the guest reads from its disk what it remembers, and every "
        "record acknowledged by then.",
        disk_agrees_with_memory,
    ),
    ONE_BOOT: Check("The guest booted once: its boot id never changed.", one_boot),
    NO_LEAKS: Check("No process, namespace, tap, file or port of the run is left.", no_leaks),
}

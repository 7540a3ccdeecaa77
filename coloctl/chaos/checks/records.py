"""Everything that a client was told to be safe is there: records, transfers, blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coloctl.chaos.checks import verdict as checker
from coloctl.chaos.checks.check import Check, Sides, count, each_work, invalid, unknown, valid
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, Outcome

CHECK = "no_lost_acks"
KINDS = ("redis-appends", "redis-transfers", "disk-writer")


def by_client(kept: Mapping[Any, Any]) -> dict[int, Any]:
    """The same with numbers for clients, which JSON makes words of."""
    return {int(client): value for client, value in kept.items()}


def no_lost_acks(evidence: Evidence, sides: Sides) -> Verdict:
    """Every acknowledged record, transfer and block is in the guest."""
    return each_work(CHECK, evidence, KINDS, _kept, sides)


def _kept(work: WorkloadRecord) -> Verdict:
    if work.kept is None:
        return unknown(CHECK, "nobody could ask what the guest holds")
    judge = {"redis-appends": _appends, "redis-transfers": _transfers, "disk-writer": _blocks}
    return judge[work.spec.kind](work)


def _appends(work: WorkloadRecord) -> Verdict:
    held: dict[int, Sequence[int]] = by_client(work.kept)
    # The sides of each fault are counted by whoever calls; this one moment is not judged.
    verdict = checker.no_lost_acks(work.history, held, fault_at_s=0.0)
    if verdict.validity is Validity.INVALID:
        return verdict
    sent = {(op.client, op.n) for op in work.history if op.outcome is Outcome.INVOKE}
    conjured = [
        f"client {client}: record {n} is there and was never sent"
        for client, records in sorted(held.items())
        for n in records
        if sent and (client, n) not in sent
    ]
    if conjured:
        return invalid(CHECK, f"{count(len(conjured), 'record')} came from nowhere", conjured)
    return valid(CHECK, f"{_acks(work.history)} acknowledged, all there, once and in order")


def _transfers(work: WorkloadRecord) -> Verdict:
    done = by_client(work.kept["done"])
    transfers = [op for op in work.history if op.f == "transfer" and op.n >= 0]
    acked = [op for op in transfers if op.outcome is Outcome.OK]
    missing = [
        f"client {op.client}: transfer {op.n} was acknowledged, the guest knows of "
        f"{done.get(op.client, 'none')}"
        for op in acked
        if op.n > done.get(op.client, -1)
    ]
    if missing:
        because = f"{count(len(missing), 'acknowledged transfer')} undone"
        return invalid(CHECK, because, missing)
    last = {op.client: op.n for op in transfers if op.outcome is Outcome.INVOKE}
    conjured = [
        f"client {client}: the guest knows of transfer {n}, the last one sent was {last[client]}"
        for client, n in sorted(done.items())
        if client in last and n > last[client]
    ]
    if conjured:
        return invalid(CHECK, "transfers came from nowhere", conjured)
    return valid(CHECK, f"{len(acked)} acknowledged transfers, all done")


def _blocks(work: WorkloadRecord) -> Verdict:
    held = {
        client: {int(n): checksum for n, checksum in blocks.items()}
        for client, blocks in by_client(work.kept).items()
    }
    written = {
        (op.client, op.n): op.value
        for op in work.history
        if op.n >= 0 and op.value is not None
        if op.outcome in (Outcome.INVOKE, Outcome.OK)
    }
    acked = sorted(
        {(op.client, op.n) for op in work.history if op.outcome is Outcome.OK and op.n >= 0}
    )
    wrong = []
    for client, n in acked:
        found, meant = held.get(client, {}).get(n), written.get((client, n))
        if found is None:
            wrong.append(f"client {client}: block {n} is not there")
        elif meant is not None and found != meant:
            wrong.append(f"client {client}: block {n} is {found}, {meant} was written")
    if wrong:
        because = f"{count(len(wrong), 'acknowledged block')} lost or changed"
        return invalid(CHECK, because, wrong)
    return valid(CHECK, f"{len(acked)} acknowledged blocks, all there and whole")


def _acks(history: Sequence[Op]) -> int:
    return sum(op.outcome is Outcome.OK and op.n >= 0 for op in history)


CHECKS = {
    CHECK: Check(
        "Whatever was acknowledged is in the guest: records once and in order, transfers done, "
        "blocks whole.",
        no_lost_acks,
        Sides,
    )
}

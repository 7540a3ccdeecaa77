"""Check that every acknowledged record, transfer and block is in the guest, once and in order.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; `bench.document` counts what is
lost. Reads the histories of `chaos.workloads`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from coloctl.chaos.checks.sides import Sides, each_work, numbers
from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, OpStatus, operations


@check(Sides)
def no_lost_acks(evidence: Evidence, sides: Sides) -> Verdict:
    """Require that everything acknowledged is in the guest: records once and in order, transfers
    done, blocks whole.
    """
    return each_work(evidence, KINDS, _kept, sides)


def _kept(work: WorkloadRecord) -> Verdict:
    if work.kept is None:
        return unknown("the guest did not answer what it holds")
    return KINDS[work.spec.kind](work)


def acknowledged(history: Iterable[Op]) -> Mapping[int, list[int]]:
    """Return per client the records that were acknowledged to it, in its order."""
    acks: dict[int, list[int]] = defaultdict(list)
    for op in history:
        if op.outcome is OpStatus.OK and op.n >= 0:
            acks[op.client].append(op.n)
    return acks


def lost(history: Sequence[Op], held: Mapping[int, Sequence[int]]) -> list[str]:
    """Return each acknowledged record that the guest does not hold, as ``client:n``."""
    there = {client: set(records) for client, records in held.items()}
    return [
        f"{client}:{n}"
        for client, acks in sorted(acknowledged(history).items())
        for n in acks
        if n not in there.get(client, ())
    ]


def _appends(work: WorkloadRecord) -> Verdict:
    if gone := lost(work.history, work.kept):
        return invalid(f"{len(gone)} acknowledged records are missing", gone)
    held = sorted(work.kept.items())
    wrong = [
        f"client {client}: record {n} appears {times} times"
        for client, records in held
        for n, times in Counter(records).items()
        if times > 1
    ] + [
        f"client {client}: record {later} stands before {earlier}"
        for client, records in held
        for later, earlier in pairwise(records)
        if later > earlier
    ]
    if wrong:
        return invalid("records are doubled or misplaced", wrong)
    sent = numbers(work.history, OpStatus.INVOKE)
    conjured = [
        f"client {client}: record {n} is there and was never sent"
        for client, records in held
        for n in records
        if sent and (client, n) not in sent
    ]
    if conjured:
        return invalid(f"{count(len(conjured), 'record')} came from nowhere", conjured)
    acks = sum(map(len, acknowledged(work.history).values()))
    return valid(f"{acks} acknowledged, all there, once and in order")


def _transfers(work: WorkloadRecord) -> Verdict:
    done = work.kept["done"]
    transfers = [op for op in work.history if op.f == "transfer"]
    acked = [op for op in transfers if op.outcome is OpStatus.OK]
    missing = [
        f"client {op.client}: transfer {op.n} was acknowledged, the guest knows of "
        f"{done.get(op.client, 'none')}"
        for op in acked
        if op.n > done.get(op.client, -1)
    ]
    if missing:
        return invalid(f"{count(len(missing), 'acknowledged transfer')} undone", missing)
    last = {op.client: op.n for op in transfers if op.outcome is OpStatus.INVOKE}
    conjured = [
        f"client {client}: the guest knows of transfer {n}, the last one sent was {last[client]}"
        for client, n in sorted(done.items())
        if client in last and n > last[client]
    ]
    if conjured:
        return invalid("transfers came from nowhere", conjured)
    return valid(f"{len(acked)} acknowledged transfers, all done")


def _blocks(work: WorkloadRecord) -> Verdict:
    acked = [one.begun for one in operations(work.history) if one.status is OpStatus.OK]
    wrong = []
    for op in sorted(acked, key=lambda op: (op.client, op.n)):
        found = work.kept.get(op.client, {}).get(op.n)
        if found is None:
            wrong.append(f"client {op.client}: block {op.n} is not there")
        elif found != op.value:
            wrong.append(f"client {op.client}: block {op.n} is {found}, {op.value} was written")
    if wrong:
        return invalid(f"{count(len(wrong), 'acknowledged block')} lost or changed", wrong)
    return valid(f"{len(acked)} acknowledged blocks, all there and whole")


#: The check of each kind of workload whose acknowledgements the guest can be asked for.
KINDS = {"redis-appends": _appends, "redis-transfers": _transfers, "disk-writer": _blocks}

"""Judges: pure functions from a history to valid, invalid with the counterexample, or unknown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from coloctl.chaos.workloads.history import Op, Outcome


class Validity(StrEnum):
    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"  #: too little happened to tell; never taken for valid


@dataclass(frozen=True)
class Verdict:
    """One judgement, and what it rests on."""

    check: str
    validity: Validity
    because: str
    counterexample: tuple[str, ...] = ()


def worst(verdicts: Iterable[Verdict]) -> Validity:
    """Invalid if any is, else unknown if any is, else valid; of nothing, unknown."""
    seen = {verdict.validity for verdict in verdicts} or {Validity.UNKNOWN}
    for validity in (Validity.INVALID, Validity.UNKNOWN):
        if validity in seen:
            return validity
    return Validity.VALID


def acknowledged(history: Iterable[Op]) -> Mapping[int, list[int]]:
    """Per client, the records that it saw acknowledged, in its order."""
    acks: dict[int, list[int]] = defaultdict(list)
    for op in history:
        if op.outcome is Outcome.OK and op.n >= 0:
            acks[op.client].append(op.n)
    return acks


def lost(history: Sequence[Op], survivors: Mapping[int, Sequence[int]]) -> list[str]:
    """Every acknowledged record that the survivor does not hold, as ``client:n``."""
    held = {client: set(records) for client, records in survivors.items()}
    return [
        f"{client}:{n}"
        for client, acks in sorted(acknowledged(history).items())
        for n in acks
        if n not in held.get(client, ())
    ]


def no_lost_acks(
    history: Sequence[Op], survivors: Mapping[int, Sequence[int]], fault_at_s: float
) -> Verdict:
    """Every acknowledged record is there, once, in its client's order, before and after the fault.

    ``survivors`` is what was read back, per client. Unknown when no record was acknowledged on one
    side of the fault.
    """
    check = "no_lost_acks"
    gone = lost(history, survivors)
    if gone:
        return Verdict(
            check,
            Validity.INVALID,
            f"{len(gone)} acknowledged records are missing",
            tuple(gone[:10]),
        )
    wrong = [
        f"client {client}: record {n} appears {count} times"
        for client, records in sorted(survivors.items())
        for n, count in Counter(records).items()
        if count > 1
    ] + [
        f"client {client}: record {later} stands before {earlier}"
        for client, records in sorted(survivors.items())
        for later, earlier in pairwise(records)
        if later > earlier
    ]
    if wrong:
        return Verdict(
            check, Validity.INVALID, "records are doubled or misplaced", tuple(wrong[:10])
        )
    acks = [op.at_s for op in history if op.outcome is Outcome.OK and op.n >= 0]
    before = sum(at_s < fault_at_s for at_s in acks)
    after = len(acks) - before
    if not before or not after:
        return Verdict(check, Validity.UNKNOWN, f"{before} acks before the fault, {after} after it")
    return Verdict(check, Validity.VALID, f"{before} acks before the fault, {after} after it")


def connections_survive(history: Sequence[Op], clients: int) -> Verdict:
    """Every client ended on the connection that it began with.

    Clients note ``opened ID`` once and ``closed ID`` at the end; anything else about a connection
    is its end.
    """
    check = "connections_survive"
    broken = broken_connections(history)
    opened = {op.client: op.note.split()[1] for op in history if op.note.startswith("opened ")}
    closed = {op.client: op.note.split()[1] for op in history if op.note.startswith("closed ")}
    if broken:
        return Verdict(check, Validity.INVALID, f"{len(broken)} connections broke", tuple(broken))
    if len(opened) < clients or set(opened) != set(closed):
        return Verdict(
            check,
            Validity.UNKNOWN,
            f"{len(opened)} of {clients} clients opened, {len(closed)} closed",
        )
    return Verdict(check, Validity.VALID, f"{len(opened)} connections, the same from end to end")


def broken_connections(history: Sequence[Op]) -> list[str]:
    """A sentence for each connection that ended early or came back as another."""
    opened = {op.client: op.note.split()[1] for op in history if op.note.startswith("opened ")}
    sentences = [
        f"client {op.client}: {op.note}"
        for op in history
        if op.outcome is Outcome.FAIL and op.n < 0
    ]
    sentences += [
        f"client {op.client}: began as {opened[op.client]}, ended as {op.note.split()[1]}"
        for op in history
        if op.note.startswith("closed ") and opened.get(op.client) != op.note.split()[1]
    ]
    return sentences


@dataclass(frozen=True)
class Outage:
    """What clients felt of a fault, milliseconds; None when no client was served on both sides."""

    longest_ms: float | None  #: the longest silence of any client that ended after the fault
    first_reply_ms: float | None  #: from the fault to the end of the first such silence


def outage(history: Sequence[Op], fault_at_s: float, within_s: float = 10.0) -> Outage:
    """The silence that each client went through because of the fault.

    Per client it is the longest gap between two consecutive replies of which the second came in the
    ``within_s`` seconds after the fault: a reply that was already on its way then does not end it.
    """
    silences = []
    for client in {op.client for op in history}:
        replies = sorted(
            op.at_s for op in history if op.client == client and op.outcome is Outcome.OK
        )
        gaps = [
            (after - before, after)
            for before, after in pairwise(replies)
            if fault_at_s < after <= fault_at_s + within_s
        ]
        if gaps:
            silences.append(max(gaps))
    if not silences:
        return Outage(None, None)
    return Outage(
        round(max(silences)[0] * 1000, 1),
        round((min(after for _, after in silences) - fault_at_s) * 1000, 1),
    )


def longest_gap_ms(history: Sequence[Op], from_s: float, to_s: float) -> float | None:
    """The longest silence of any client between two points of time, milliseconds."""
    longest: float | None = None
    for client in {op.client for op in history}:
        replies = sorted(
            op.at_s
            for op in history
            if op.client == client and op.outcome is Outcome.OK and from_s <= op.at_s <= to_s
        )
        for one, two in pairwise(replies):
            longest = max(longest or 0.0, two - one)
    return None if longest is None else round(longest * 1000, 1)

"""Check the connections of clients: the right bytes, all of them, on one connection.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; `chaos.run.result` counts what
broke. Reads the histories of `chaos.workloads`. Clients note ``opened ID`` once and
``closed ID`` at the end; any other note means that the connection broke.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import Field

from coloctl.chaos.checks.records import acknowledged
from coloctl.chaos.checks.sides import Sides, each_work, numbers, works
from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.workloads.history import Op, OpStatus

#: The kind of workload whose clients have no connection and note no ``opened``.
CONNECTIONLESS = "udp-sequence"


class Streams(Sides):
    """``loss_max`` is the share of datagrams that may have no echo."""

    loss_max: float = Field(default=0.1, ge=0, le=1)


@check(Streams)
def stream_intact(evidence: Evidence, params: Streams) -> Verdict:
    """Require streams without a wrong byte or a gap, HTTP answered by one boot of the guest, and at
    most `loss_max` of the datagrams lost.
    """

    def check_one(work: WorkloadRecord) -> Verdict:
        if work.spec.kind == "tcp-stream":
            return _bytes(work)
        return _pages(work) if work.spec.kind == "http" else _datagrams(work, params.loss_max)

    verdict = each_work(evidence, ("tcp-stream", "http", "udp-sequence"), check_one, params)
    boots = {
        str(op.value[1])
        for work in works(evidence, ("http",))
        for op in work.history
        if op.outcome is OpStatus.OK
    }
    if len(boots) > 1:
        return invalid("the guest booted meanwhile", [f"boot id {one}" for one in boots])
    return verdict


def _bytes(work: WorkloadRecord) -> Verdict:
    wrong = broken_connections(work.history)
    acked = acknowledged(work.history)
    for client, chunks in sorted(acked.items()):
        wrong += [
            f"client {client}: chunk {later} was echoed right after {earlier}"
            for earlier, later in pairwise(chunks)
            if later != earlier + 1
        ]
    if wrong:
        return invalid(f"{count(len(wrong), 'place')} where a stream is not whole", wrong)
    return valid(f"{sum(map(len, acked.values()))} chunks, every byte right")


def _pages(work: WorkloadRecord) -> Verdict:
    wrong = [
        f"client {op.client}: request {op.n} got {op.value[0]}"
        for op in work.history
        if op.outcome is OpStatus.FAIL and op.n >= 0
    ]
    if wrong:
        return invalid(f"{count(len(wrong), 'request')} not answered with 200", wrong)
    answers = numbers(work.history, OpStatus.OK)
    if not answers:
        return unknown("no answer had a status")
    return valid(f"{len(answers)} answers, all of status 200 and from one boot")


def _datagrams(work: WorkloadRecord, loss_max: float) -> Verdict:
    wrong = [f"client {op.client}: {op.note}" for op in work.history if op.outcome is OpStatus.FAIL]
    if wrong:
        return invalid(f"{count(len(wrong), 'echo')} of other content", wrong)
    sent = numbers(work.history, OpStatus.INVOKE)
    gone = sorted(sent - numbers(work.history, OpStatus.OK))
    if not sent:
        return unknown("no datagram was sent")
    share = len(gone) / len(sent)
    because = f"{len(gone)} of {len(sent)} datagrams had no echo ({share:.1%})"
    if share > loss_max:
        return invalid(because, [f"client {client}: {n}" for client, n in gone])
    return valid(because)


@check(Sides)
def connections_survive(evidence: Evidence, sides: Sides) -> Verdict:
    """Require that every client ended on the connection it began with."""
    kinds = {work.spec.kind for work in evidence.works.values()} - {CONNECTIONLESS}
    return each_work(evidence, kinds, _connected, sides)


def _connected(work: WorkloadRecord) -> Verdict:
    opened, closed = _connections(work.history, "opened "), _connections(work.history, "closed ")
    if broken := broken_connections(work.history):
        return invalid(f"{len(broken)} connections broke", broken)
    if len(opened) < work.spec.clients or set(opened) != set(closed):
        clients = f"{len(opened)} of {work.spec.clients} clients"
        return unknown(f"{clients} opened, {len(closed)} closed")
    return valid(f"{len(opened)} connections, the same from end to end")


def _connections(history: Sequence[Op], note: str) -> dict[int, str]:
    return {op.client: op.note.split()[1] for op in history if op.note.startswith(note)}


def broken_connections(history: Sequence[Op]) -> list[str]:
    """Describe each connection that ended early or came back as another."""
    opened = _connections(history, "opened ")
    return [
        f"client {op.client}: {op.note}"
        for op in history
        if op.outcome is OpStatus.FAIL and op.n < 0
    ] + [
        f"client {op.client}: began as {opened[op.client]}, ended as {op.note.split()[1]}"
        for op in history
        if op.note.startswith("closed ") and opened.get(op.client) != op.note.split()[1]
    ]


@check()
def checksums_right(evidence: Evidence, _: Params) -> Verdict:
    """Require that no TCP segment with a wrong checksum reached the client, whose links check each
    one.
    """
    wrong = evidence.bad_checksums
    if wrong is None:
        return unknown("they were not counted")
    if wrong:
        return invalid(f"{count(wrong, 'segment')} with a wrong checksum arrived")
    return valid("every segment that reached the client had the right one")

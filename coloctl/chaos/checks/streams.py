"""What clients saw of their connections: the right bytes, all of them, on one connection."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field

from coloctl.chaos.checks import verdict as checker
from coloctl.chaos.checks.check import (
    Check,
    Params,
    Sides,
    count,
    each_work,
    invalid,
    unknown,
    valid,
)
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, Outcome

INTACT, SURVIVE, CHECKSUMS = "stream_intact", "connections_survive", "checksums_right"
#: Whoever has none notes no ``opened``.
CONNECTIONLESS = ("udp-sequence", "disk-writer")


class Streams(Sides):
    """``loss_max`` is the share of datagrams that may have no echo."""

    loss_max: float = Field(default=0.1, ge=0, le=1)


def stream_intact(evidence: Evidence, params: Streams) -> Verdict:
    """No byte was wrong, none is missing; HTTP was answered by one guest; datagrams came once."""

    def judge(work: WorkloadRecord) -> Verdict:
        if work.spec.kind == "tcp-stream":
            return _bytes(work)
        return _pages(work) if work.spec.kind == "http" else _datagrams(work, params.loss_max)

    kinds = ("tcp-stream", "http", "udp-sequence")
    verdict = each_work(INTACT, evidence, kinds, judge, params)
    boots = {
        str(op.value[1])
        for work in evidence.works.values()
        if work.spec.kind == "http"
        for op in work.history
        if op.outcome is Outcome.OK and op.value is not None
    }
    if len(boots) > 1:
        return invalid(INTACT, "the guest booted meanwhile", [f"boot id {one}" for one in boots])
    return verdict


def _bytes(work: WorkloadRecord) -> Verdict:
    wrong = checker.broken_connections(work.history)
    acked = checker.acknowledged(work.history)
    for client, chunks in sorted(acked.items()):
        wrong += [
            f"client {client}: chunk {later} was echoed right after {earlier}"
            for earlier, later in pairwise(chunks)
            if later != earlier + 1
        ]
    if wrong:
        return invalid(INTACT, f"{count(len(wrong), 'place')} where a stream is not whole", wrong)
    return valid(INTACT, f"{sum(map(len, acked.values()))} chunks, every byte right")


def _pages(work: WorkloadRecord) -> Verdict:
    wrong = [
        f"client {op.client}: request {op.n} got {_status(op)}"
        for op in work.history
        if op.n >= 0 and op.outcome in (Outcome.OK, Outcome.FAIL)
        if op.outcome is Outcome.FAIL or (op.value and op.value[0] != 200)
    ]
    if wrong:
        return invalid(INTACT, f"{count(len(wrong), 'request')} not answered with 200", wrong)
    told = [op for op in work.history if op.outcome is Outcome.OK and op.value]
    if not told:
        return unknown(INTACT, "no answer told its status")
    return valid(INTACT, f"{len(told)} answers, all of status 200 and from one boot")


def _status(op: Op) -> str:
    return str(op.value[0]) if op.value else op.note or "nothing"


def _datagrams(work: WorkloadRecord, loss_max: float) -> Verdict:
    first = {(op.client, op.n): op for op in work.history if op.outcome is Outcome.OK and not op.f}
    wrong = [
        f"client {op.client}: datagram {op.n} came back as something else"
        f"{': ' + op.note if op.note else ''}"
        for op in work.history
        if _differs(op, first.get((op.client, op.n)))
    ]
    if wrong:
        return invalid(INTACT, f"{count(len(wrong), 'echo')} of other content", wrong)
    sent = {(op.client, op.n) for op in work.history if op.outcome is Outcome.INVOKE and op.n >= 0}
    gone = sorted(sent - set(first))
    if not sent:
        return unknown(INTACT, "no datagram was sent")
    share = len(gone) / len(sent)
    because = f"{len(gone)} of {len(sent)} datagrams had no echo ({share:.1%})"
    if share > loss_max:
        return invalid(INTACT, because, [f"client {client}: {n}" for client, n in gone])
    return valid(INTACT, because)


def _differs(op: Op, first: Op | None) -> bool:
    if op.outcome is Outcome.FAIL and op.n >= 0:
        return True
    second = op.f == "duplicate"
    return (
        second
        and first is not None
        and None not in (op.value, first.value)
        and (op.value != first.value)
    )


def connections_survive(evidence: Evidence, sides: Sides) -> Verdict:
    """Every client of every workload ended on the connection that it began with."""
    kinds = {
        work.spec.kind
        for work in evidence.works.values()
        if work.spec.kind not in CONNECTIONLESS
        or any(op.note.startswith("opened ") for op in work.history)
    }
    return each_work(
        SURVIVE,
        evidence,
        kinds,
        lambda work: checker.connections_survive(work.history, work.spec.clients),
        sides,
    )


def checksums_right(evidence: Evidence, _params: Params) -> Verdict:
    """No TCP segment with a wrong checksum reached the client, whose links check each one."""
    wrong = evidence.bad_checksums
    if wrong is None:
        return unknown(CHECKSUMS, "nobody counted them")
    if wrong:
        return invalid(CHECKSUMS, f"{count(wrong, 'segment')} with a wrong checksum arrived")
    return valid(CHECKSUMS, "every segment that reached the client had the right one")


CHECKS = {
    CHECKSUMS: Check("No TCP segment with a wrong checksum reached the client.", checksums_right),
    INTACT: Check(
        "Streams have no wrong byte and no gap, HTTP was answered by one boot of the guest, and "
        "at most `loss_max` of the datagrams were lost.",
        stream_intact,
        Streams,
    ),
    SURVIVE: Check(
        "Every client ended on the connection it began with.", connections_survive, Sides
    ),
}

"""Each check has all three verdicts: a promise kept, a promise broken, too little evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from support import evidences as runs
from support.evidences import (
    FAIL,
    INFO,
    INVOKE,
    OK,
    answered,
    at_work,
    checked,
    connected,
    counterexample,
    early,
    evidence,
)
from support.views import LOST

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.checks.sides import Sides, thin
from coloctl.chaos.checks.verdict import EXAMPLES_MAX, Validity
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Audit, FrameRun, Inventory, StrangerGains
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.model.protection import Protection

pytestmark = pytest.mark.unit


@dataclass
class Case:
    """One check and three runs. ``tells`` stands in the counterexample of the broken one."""

    good: Evidence
    broken: Evidence
    tells: str
    thin: Evidence
    params: dict[str, Any]

    def __init__(
        self, good: Evidence, broken: Evidence, tells: str, thin: Evidence, **params: Any
    ) -> None:
        self.good, self.broken, self.tells, self.thin = good, broken, tells, thin
        self.params = params


APPENDS = runs.steadily()
WRITES = [line for n in range(12) for line in answered(6.0 + n, n, f="write", key="x", value=n)]
STALE = [*WRITES, *answered(18.0, 12, f="read", key="x", said=3)]
MOVE = {"from": "a", "to": "b", "amount": 1}
MOVES = [line for n in range(12) for line in answered(6.0 + n, n, f="transfer", value=MOVE)]
READS = answered(5.5, 50, 1, f="read", said={"a": 50, "b": 50})
BANK = [*READS, *MOVES]
ECHOES = connected(runs.steadily())
SILENT = [op for op in ECHOES if not (op.n >= 0 and op.at_s > 10.5)]


COUNTED = tuple(
    Inventory(at_s, {"primary": {"jobs": n}}) for n, at_s in enumerate((6.0, 13.0, 19.0), start=1)
)


def ended(a: int, b: int, done: int = 11) -> dict[str, Any]:
    return {"balances": {"a": a, "b": b}, "done": {0: done}}


CASES = {
    "no_lost_acks": Case(
        at_work("redis-appends", APPENDS, {0: list(range(12))}),
        at_work("redis-appends", APPENDS, {0: [n for n in range(12) if n != 7]}),
        "0:7",
        at_work("redis-appends", early(APPENDS), {0: list(range(4))}),
    ),
    "linearizable": Case(
        at_work("redis-registers", WRITES, {"x": 11}),
        at_work("redis-registers", STALE, {"x": 11}),
        "x: client 0: read of 3, between 12.990 s and 13.000 s",
        at_work("redis-registers", early(WRITES), {"x": 3}),
    ),
    "bank_sum": Case(
        at_work("redis-transfers", BANK, ended(38, 62)),
        at_work("redis-transfers", BANK, ended(38, 63)),
        "the guest holds a=38, b=63: 101 instead of 100",
        at_work("redis-transfers", early(BANK), ended(46, 54, 3)),
    ),
    "stream_intact": Case(
        at_work("tcp-stream", ECHOES),
        at_work("tcp-stream", [*ECHOES, Op(18.0, 0, FAIL, -1, "wrong byte at 4096")]),
        "client 0: wrong byte at 4096",
        at_work("tcp-stream", SILENT),
    ),
    "checksums_right": Case(
        evidence(bad_checksums=0),
        evidence(bad_checksums=3),
        "",
        evidence(bad_checksums=None),
    ),
    "connections_survive": Case(
        at_work("redis-appends", ECHOES),
        at_work("redis-appends", connected(runs.steadily(), end="reset by peer")),
        "client 0: reset by peer",
        at_work("redis-appends", SILENT),
    ),
    "outage_within": Case(
        at_work("redis-appends", ECHOES),
        at_work("redis-appends", SILENT),
        "silent from 5.000 s for 10000 ms and never served again",
        at_work("redis-appends", [op for op in ECHOES if op.at_s > 10.5]),
        ms=1500,
    ),
    "reprotected_within": Case(
        evidence(),
        evidence(events=runs.events()[:7], journal=runs.journal()[:10], ended_s=80.0),
        "lost at 5.100 s, unprotected for 69.9 s and to the end",
        evidence(events=(), journal=(), takeovers=()),
        s=30.0,
    ),
    "protected_at_end": Case(
        evidence(),
        evidence(view=replace(LOST, reason="The disk is full.")),
        "The disk is full.",
        evidence(view=None),
    ),
    "failovers": Case(
        evidence(),
        evidence(takeovers=(), events=(), journal=runs.journal(without="timeline")),
        "",
        evidence(takeovers=(), events=(), journal=()),
        min=1,
        max=1,
    ),
    "ruin_noticed": Case(
        evidence(faults=(runs.RUINED,), events=runs.diverged(10.9, checkpoints=3)),
        evidence(faults=(runs.RUINED,), events=runs.diverged(12.9, checkpoints=7)),
        "5.000 s: ruin was noticed after 7 checkpoints and 2.90 s",
        evidence(events=runs.diverged(10.9, checkpoints=3)),
    ),
    "none_accused": Case(
        evidence(faults=(runs.RUINED,), events=runs.diverged(10.9, checkpoints=3)),
        evidence(events=runs.diverged(9.0, checkpoints=0)),
        "4.000 s: It spins.",
        evidence(events=()),
    ),
    "stranger_got_nothing": Case(
        evidence(faults=(runs.stranger(StrangerGains({}, 90)),)),
        evidence(faults=(runs.stranger(StrangerGains({"half a write": 2}, 90)),)),
        "5.000 s: on host-a: it got 2 x half a write",
        evidence(),
    ),
    "never_failed": Case(
        evidence(),
        evidence(events=(*runs.events(), runs.changed(15.0, "failover", "failed", "no proof"))),
        "no proof",
        evidence(events=(), journal=()),
    ),
    "one_primary": Case(
        evidence(),
        evidence(frames=(*runs.FRAMES, FrameRun("a", 20.1, 20.2, 3), FrameRun("b", 20.3, 20.4, 1))),
        "15.100 s to 15.200 s: 3 frames of node a, while node b was the primary since 5.110 s",
        evidence(frames=()),
    ),
    "journal_consistent": Case(
        evidence(),
        evidence(journal=runs.journal(without="fence")),
        "generation 1 was promoted without a fence",
        evidence(journal=()),
    ),
    "disks_identical": Case(
        evidence(),
        evidence(differences={"disk0": [65536]}),
        "disk0: differs at byte 65536",
        evidence(differences=None),
    ),
    "disk_agrees_with_memory": Case(
        evidence(),
        evidence(audits=(Audit(19.0, "boot-1", {0: [1]}, {0: [1, 2]}),)),
        "client 0: record 2 is in memory only",
        evidence(audits=()),
    ),
    "one_boot": Case(
        evidence(),
        evidence(audits=(Audit(6.0, "boot-1"), Audit(19.0, "boot-2"))),
        "14.000 s: boot id boot-2",
        evidence(audits=(Audit(19.0, "boot-1"),)),
    ),
    "nothing_grows": Case(
        evidence(inventories=(COUNTED[0], *COUNTED[1:2] * 2)),
        evidence(inventories=COUNTED),
        "14.000 s: {'primary': {'jobs': 3}}, {'primary': {'jobs': 2}} after the first",
        evidence(inventories=COUNTED[:2]),
    ),
    "no_leaks": Case(
        evidence(),
        evidence(remains=("process 7 still runs: qemu",)),
        "process 7 still runs",
        evidence(remains=None),
    ),
}


def test_every_check_has_its_case() -> None:
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize("check", CASES)
def test_a_promise_that_was_kept_is_valid(check: str) -> None:
    case = CASES[check]
    verdict = checked(check, case.good, **case.params)
    assert (verdict.check, verdict.validity) == (check, Validity.VALID), verdict


@pytest.mark.parametrize("check", CASES)
def test_a_promise_that_was_broken_is_invalid_and_shown(check: str) -> None:
    case = CASES[check]
    verdict = checked(check, case.broken, **case.params)
    assert (verdict.check, verdict.validity) == (check, Validity.INVALID), verdict
    assert any(case.tells in line for line in verdict.counterexample) or not case.tells, verdict


@pytest.mark.parametrize("check", CASES)
def test_too_little_evidence_is_unknown(check: str) -> None:
    case = CASES[check]
    verdict = checked(check, case.thin, **case.params)
    assert (verdict.check, verdict.validity) == (check, Validity.UNKNOWN), verdict
    assert verdict.because


@pytest.mark.parametrize("check", CASES)
def test_nothing_at_all_is_never_valid(check: str) -> None:
    nothing = Evidence(0.0, 0.0, (), {})
    assert checked(check, nothing, **CASES[check].params).validity is not Validity.VALID


@pytest.mark.parametrize("check", CASES)
def test_no_promise_holds_without_its_own_evidence(check: str) -> None:
    """Workloads of another kind, which nobody asked for, say nothing."""
    bare = replace(evidence(), works={})
    if check in ("no_lost_acks", "linearizable", "bank_sum", "stream_intact"):
        assert checked(check, bare).validity is Validity.UNKNOWN


def test_each_check_says_in_a_line_what_it_proves() -> None:
    for kind in CHECKS.values():
        assert kind.doc.endswith(".")
        assert "\n" not in kind.doc


def test_acknowledgements_are_counted_on_each_side_of_each_fault() -> None:
    run = at_work("redis-appends", APPENDS, {0: list(range(12))})
    late = replace(runs.KILLED, at_s=16.5, healed_s=18.0)
    both = replace(run, faults=(runs.KILLED, late))
    assert checked("no_lost_acks", both).validity is Validity.UNKNOWN  # none after it was healed
    healed = replace(both, faults=(runs.KILLED, replace(late, healed_s=16.9)))
    assert checked("no_lost_acks", healed).validity is Validity.VALID
    assert checked("no_lost_acks", healed, during_min=1).validity is Validity.UNKNOWN
    assert checked("no_lost_acks", healed, before_min=5).validity is Validity.UNKNOWN
    assert checked("no_lost_acks", healed, after_min=2).validity is Validity.UNKNOWN


def test_clients_that_come_in_mid_run_have_nothing_to_do_with_the_faults_before() -> None:
    """The fault is at 10 s; clients that came before it need both sides, others only answers."""
    sides = Sides(before_min=2, after_min=2)
    late = [op for at_s in (11.0, 12.0) for op in answered(at_s, int(at_s))]
    assert thin(evidence(), late, sides) == ""
    assert thin(evidence(), late[:2], sides) == "only 1 acknowledged, of 2 that are needed"
    assert "1 acknowledged before power cut" in thin(evidence(), answered(9.0, 0) + late, sides)
    assert "0 acknowledged before power cut" in thin(evidence(), [], sides)
    assert "before the steady state" in thin(evidence(faults=()), answered(4.0, 0), sides)


@pytest.mark.parametrize(
    ("work", "tells"),
    [
        (at_work("redis-appends", APPENDS, {0: [0, *range(12)]}), "record 0 appears 2 times"),
        (at_work("redis-appends", APPENDS, {0: [1, 0, *range(2, 12)]}), "record 1 stands before"),
        (at_work("redis-appends", APPENDS, {0: range(13)}), "record 12 is there and was never"),
        (at_work("redis-transfers", BANK, ended(38, 62, 9)), "transfer 10 was acknowledged"),
        (at_work("redis-transfers", BANK, ended(38, 62, 12)), "the last one sent was 11"),
    ],
)
def test_records_are_there_once_and_in_order(work: Evidence, tells: str) -> None:
    assert tells in counterexample("no_lost_acks", work)


def test_a_block_that_is_gone_or_changed_is_a_lost_acknowledgement() -> None:
    history = [line for n in range(12) for line in answered(6.0 + n, n, value=f"sum{n}")]
    whole = {n: f"sum{n}" for n in range(12)}
    good = at_work("disk-writer", history, {0: whole})
    assert checked("no_lost_acks", good).validity is Validity.VALID
    for kept in ({**whole, 4: "sum9"}, {n: one for n, one in whole.items() if n != 4}):
        verdict = checked("no_lost_acks", at_work("disk-writer", history, {0: kept}))
        assert verdict.validity is Validity.INVALID
        assert "block 4" in verdict.counterexample[0]


def test_who_could_not_be_asked_leaves_it_unknown() -> None:
    for kind, history in (("redis-appends", APPENDS), ("redis-registers", WRITES)):
        check = "no_lost_acks" if kind == "redis-appends" else "linearizable"
        assert checked(check, at_work(kind, history, None)).validity is Validity.UNKNOWN
    assert checked("bank_sum", at_work("redis-transfers", BANK)).validity is Validity.UNKNOWN


def test_an_operation_nobody_saw_end_may_have_happened() -> None:
    lost = Op(13.5, 1, INVOKE, 0, f="write", key="x", value=99)
    for value in (11, 99):
        read = answered(18.0, 12, f="read", key="x", said=value)
        run = at_work("redis-registers", [*WRITES, lost, *read], {"x": value})
        assert checked("linearizable", run).validity is Validity.VALID
    known = [*WRITES, lost, Op(13.6, 1, FAIL, 0, f="write", key="x", value=99)]
    run = at_work("redis-registers", [*known, *read], {"x": 99})
    assert checked("linearizable", run).validity is Validity.INVALID


def test_a_search_that_takes_too_long_is_unknown() -> None:
    many = [
        line
        for n in range(12)
        for line in (
            Op(6.0, n, INVOKE, 0, f="write", key="x", value=n),
            Op(18.0, n, OK, 0, f="write", key="x", value=n),
        )
    ]
    run = at_work("redis-registers", many, {"x": "never written"})
    verdict = checked("linearizable", run, states_max=1000)
    assert verdict.validity is Validity.UNKNOWN
    assert "given up" in verdict.because


def test_pages_come_with_200_from_one_boot() -> None:
    def pages(*last: Op) -> Evidence:
        history = runs.steadily(said=[200, "boot-1"])
        return at_work("http", connected([*history, *last]))

    assert checked("stream_intact", pages()).validity is Validity.VALID
    for outcome, value, tells in (
        (FAIL, [503, "boot-1"], "client 0: request 12 got 503"),
        (OK, [200, "boot-2"], "boot id boot-2"),
    ):
        verdict = checked("stream_intact", pages(*answered(18.0, 12, outcome=outcome, said=value)))
        assert verdict.validity is Validity.INVALID
        assert tells in verdict.counterexample


def test_datagrams_may_be_lost_and_doubled_but_not_changed() -> None:
    lost = answered(10.5, 20, outcome=INFO)
    twice = Op(17.5, 0, OK, 3, f="duplicate")
    run = at_work("udp-sequence", [*APPENDS, *lost, twice])
    assert checked("stream_intact", run).validity is Validity.VALID
    assert checked("stream_intact", run, loss_max=0.05).validity is Validity.INVALID
    changed = Op(17.5, 0, FAIL, -1, "a datagram that was never sent")
    verdict = checked("stream_intact", at_work("udp-sequence", [*APPENDS, changed]))
    assert verdict.validity is Validity.INVALID
    assert verdict.counterexample == ("client 0: a datagram that was never sent",)


def test_a_gap_in_a_stream_is_shown() -> None:
    holed = connected([op for op in runs.steadily() if op.n != 5])
    verdict = checked("stream_intact", at_work("tcp-stream", holed))
    assert verdict.counterexample == ("client 0: chunk 6 was echoed right after 4",)


def test_a_stranger_that_did_not_report_its_gains_is_not_taken_for_harmless() -> None:
    run = evidence(faults=(runs.stranger("it never reported what it got"),))
    verdict = checked("stranger_got_nothing", run)
    assert verdict.validity is Validity.INVALID
    assert verdict.counterexample == ("5.000 s: on host-a: it never reported what it got",)


def test_clients_of_udp_need_no_connection() -> None:
    run = at_work("udp-sequence", APPENDS)
    assert checked("connections_survive", run).validity is Validity.UNKNOWN
    beside = replace(run, works={**run.works, **at_work("redis-appends", ECHOES).works})
    assert checked("connections_survive", beside).validity is Validity.VALID


def test_clients_that_never_connected_did_not_keep_their_connection() -> None:
    run = at_work("disk-writer", [Op(6.0, 0, FAIL, -1, "never connected: refused")])
    verdict = checked("connections_survive", run)
    assert verdict.validity is Validity.INVALID
    assert verdict.counterexample == ("client 0: never connected: refused",)


def test_a_counterexample_is_short() -> None:
    run = at_work("redis-appends", APPENDS, {0: []})
    verdict = checked("no_lost_acks", run)
    assert verdict.because == "load: 12 acknowledged records are missing"
    assert verdict.counterexample == tuple(f"0:{n}" for n in range(EXAMPLES_MAX))


def cas(at_s: float, n: int, old: Any, new: Any, outcome: OpStatus = OK) -> list[Op]:
    return answered(at_s, n, outcome=outcome, f="cas", key="x", value=[old, new])


def test_a_register_that_is_compared_and_set_behaves_as_one() -> None:
    history = [
        *answered(6.0, 0, f="write", key="x", value=1),
        *cas(7.0, 1, 1, 2),
        *cas(8.0, 2, 1, 3, FAIL),
        *answered(16.0, 3, f="read", key="x", said=2),
    ]
    assert checked("linearizable", at_work("redis-registers", history, {"x": 2})).validity is (
        Validity.VALID
    )
    for more, kept, tells in (
        (cas(17.0, 4, 7, 8), 8, "x: client 0: cas from 7 to 8"),
        (cas(17.0, 4, 2, 8, FAIL), 2, "x: client 0: cas that found something else than 2"),
        ([], 9, "x: client -1: read of 9, read back in the end"),
    ):
        run = at_work("redis-registers", [*history, *more], {"x": kept})
        assert tells in counterexample("linearizable", run)


def test_a_corruption_that_is_never_noticed_is_too_late() -> None:
    run = evidence(faults=(runs.RUINED,))
    assert counterexample("ruin_noticed", run) == "5.000 s: ruin was never noticed"


def test_the_last_view_alone_shows_a_failed_pair() -> None:
    view = replace(LOST, protection=Protection.FAILED, reason="No proof.")
    assert counterexample("never_failed", evidence(events=(), journal=(), view=view)) == "No proof."


def test_transfers_that_were_acknowledged_are_done() -> None:
    verdict = checked("no_lost_acks", at_work("redis-transfers", BANK, ended(38, 62)))
    assert verdict.validity is Validity.VALID
    assert verdict.because == "load: 12 acknowledged transfers, all done"


def test_a_connection_that_ends_as_another_one_did_not_survive() -> None:
    run = at_work("redis-appends", connected(runs.steadily(), end="closed 2"))
    assert counterexample("connections_survive", run) == "client 0: began as 1, ended as 2"


@pytest.mark.parametrize(
    ("check", "run", "because"),
    [
        ("bank_sum", at_work("redis-transfers", MOVES), "no balances were read"),
        ("bank_sum", at_work("redis-transfers", MOVES, ended(38, 62)), "while they changed"),
        ("linearizable", at_work("redis-registers", [], {}), "no operation on any register"),
        ("stream_intact", at_work("http", []), "no answer had a status"),
        ("stream_intact", at_work("udp-sequence", []), "no datagram was sent"),
        (
            "connections_survive",
            at_work("redis-appends", connected(runs.steadily())[:-1]),
            "1 of 1 clients opened, 0 closed",
        ),
        (
            "disk_agrees_with_memory",
            evidence(audits=(Audit(19.0, "boot-1"),)),
            "the guest held no record that could be compared",
        ),
    ],
)
def test_what_shows_nothing_is_unknown_for_its_own_reason(
    check: str, run: Evidence, because: str
) -> None:
    verdict = checked(check, run)
    assert verdict.validity is Validity.UNKNOWN
    assert because in verdict.because

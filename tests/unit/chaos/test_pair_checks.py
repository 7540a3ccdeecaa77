"""The checks of a pair: one primary, what was recorded and announced, times, what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import evidences as runs
from support.evidences import answered, at_work, checked, connected, counterexample, evidence
from support.views import LOST

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.evidence.records import Audit, FrameRun, WorkloadRecord, takeovers_in
from coloctl.chaos.scenario.values import Workload
from coloctl.model.event import LAUNCHED, Kind, Record
from coloctl.model.protection import MOVES, Fact, Protection

pytestmark = pytest.mark.unit

VALID, INVALID, UNKNOWN = Validity.VALID, Validity.INVALID, Validity.UNKNOWN


# one_primary


def test_two_nodes_that_speak_by_turns_without_a_takeover_are_two_primaries() -> None:
    frames = (FrameRun("a", 5, 9, 9), FrameRun("b", 9.5, 9.6, 1), FrameRun("a", 9.7, 20, 9))
    bare = evidence(takeovers=(), events=(), journal=runs.journal()[:4], frames=frames)
    assert "1 frame of node b, while node a was the primary" in counterexample("one_primary", bare)


def test_frames_under_way_when_the_fence_fell_are_no_second_primary() -> None:
    late = (FrameRun("a", 5, 10.114, 9), runs.FRAMES[1])
    assert checked("one_primary", evidence(frames=late)).validity is VALID
    assert "node a" in counterexample(
        "one_primary", evidence(frames=(FrameRun("a", 5, 10.13, 9), runs.FRAMES[1]))
    )


def test_a_node_may_speak_again_once_it_took_over_again() -> None:
    back = {**runs.TIMELINE, "survivor": "a", "lost": "b", "began_s": 15.0, "generation": 2}
    frames = (*runs.FRAMES[:1], FrameRun("b", 10.14, 14.9, 9), FrameRun("a", 15.1, 20, 9))
    both = evidence(takeovers=takeovers_in((runs.TIMELINE, back)), frames=frames)
    assert checked("one_primary", both).validity is VALID
    assert "node a, while node b was the primary" in counterexample(
        "one_primary", evidence(frames=frames)
    )


def test_a_survivor_that_speaks_before_the_other_is_fenced_is_a_second_primary() -> None:
    eager = (FrameRun("a", 5, 10.0, 9), FrameRun("b", 10.05, 20, 9))
    assert "node b, while node a was the primary" in counterexample(
        "one_primary", evidence(frames=eager)
    )


def test_a_primary_whose_secondary_is_lost_reigns_on() -> None:
    timeline = {**runs.TIMELINE, "survivor": "a", "lost": "b", "role_before": "primary"}
    alone = evidence(
        takeovers=takeovers_in([timeline]),
        journal=runs.numbered([*runs.journal()[:6], replace(runs.journal()[6], node="b")]),
        events=(),
        frames=(FrameRun("a", 5, 20, 99),),
    )
    assert checked("one_primary", alone).validity is VALID


def test_a_takeover_that_nobody_heard_of_is_in_the_journal() -> None:
    assert checked("one_primary", evidence(takeovers=(), events=())).validity is VALID


def test_a_guest_started_anew_on_the_other_node_has_a_new_primary() -> None:
    launch = Record(Kind.OUTCOME, node="b", data={"launched": "primary", "pid": 9}, mono_s=10.1)
    anew = evidence(takeovers=(), events=(), journal=runs.numbered([*runs.journal()[:4], launch]))
    assert checked("one_primary", anew).validity is VALID


def test_a_survivor_that_was_never_heard_leaves_it_unknown() -> None:
    assert checked("one_primary", evidence(frames=runs.FRAMES[:1])).validity is UNKNOWN
    assert checked("one_primary", evidence(journal=())).validity is UNKNOWN


@pytest.mark.parametrize("generation", [0, 1])
def test_every_promotion_has_a_greater_generation(generation: int) -> None:
    again = Record(Kind.INTENT, step="promote", generation=generation, mono_s=18.0)
    run = evidence(journal=runs.numbered([*runs.journal(), again]))
    assert f"promoted in generation {generation}, after generation 1" in counterexample(
        "one_primary", run
    )


def test_no_generation_is_announced_twice() -> None:
    twice = (*runs.events(), runs.failed_over(15.0, survivor="a", lost="b"))
    assert "generation 1 of node a was announced after" in counterexample(
        "one_primary", evidence(events=twice)
    )


# journal_consistent


def test_a_survivor_that_is_announced_before_it_has_left_colo_is_caught() -> None:
    hasty = evidence(events=runs.events(promoted_s=10.3))
    assert "its QEMU left COLO only afterwards" in counterexample("journal_consistent", hasty)


def test_a_survivor_that_nobody_heard_leave_colo_is_unknown() -> None:
    deaf = tuple(said for said in runs.events() if said.name != "NODE_EVENT")
    silent = evidence(events=deaf, frames=())
    assert checked("journal_consistent", silent).validity is UNKNOWN
    assert checked("journal_consistent", evidence(events=())).validity is UNKNOWN


def test_the_timeline_of_a_later_failover_names_no_survivor_of_this_one() -> None:
    """The supervisor was killed before it sent the timeline of the first failover, to b."""
    cut_off = [said for said in runs.events() if said.name != "FAILED_OVER"]
    later = (
        runs.changed(15.0, "colo", "failover"),
        runs.migration(15.05, "a", "completed"),
        runs.changed(15.1, "failover", "unprotected"),
        runs.failed_over(15.2, survivor="a", lost="b", generation=2),
    )
    run = evidence(events=(*cut_off, *later), frames=())
    assert "node ? left COLO" in checked("journal_consistent", run).because


def test_a_secondary_that_was_heard_on_the_lan_had_been_promoted() -> None:
    deaf = tuple(said for said in runs.events() if said.name != "NODE_EVENT")
    assert checked("journal_consistent", evidence(events=deaf)).validity is VALID


def test_an_earlier_promotion_proves_nothing_for_a_later_one() -> None:
    later = (
        runs.changed(15.0, "colo", "failover"),
        runs.changed(15.1, "failover", "unprotected"),
        runs.failed_over(15.2, generation=2),
        runs.migration(15.3, "b", "completed"),
    )
    assert "10.100 s" in counterexample(
        "journal_consistent", evidence(events=(*runs.events(), *later))
    )


@pytest.mark.parametrize("how", ["sigkill", "already-dead", "agent-sigterm", "confirmed-sigkill"])
def test_the_kernel_proves_a_death(how: str) -> None:
    assert checked("journal_consistent", evidence(journal=runs.journal(how=how))).validity is VALID


def test_nothing_else_proves_a_death() -> None:
    assert "does not prove" in counterexample(
        "journal_consistent", evidence(journal=runs.journal(how="assumed"))
    )
    other = evidence(journal=runs.journal(pid=8))
    assert "process 8 is dead, node a was process 7" in counterexample("journal_consistent", other)


@pytest.mark.parametrize(("role", "validity"), [("secondary", VALID), ("primary", INVALID)])
def test_only_a_secondary_may_be_out_of_reach_when_the_other_node_goes_on(
    role: str, validity: Validity
) -> None:
    """It takes over with a claim alone, and the survivor has that."""
    journal = runs.journal(how="out-of-reach")
    fenced = next(n for n, one in enumerate(journal) if one.data.get("how"))
    launch = Record(
        Kind.OUTCOME,
        step="launch",
        node=journal[fenced].node,
        data={LAUNCHED: role, "pid": journal[fenced].data["pid"]},
    )
    run = evidence(journal=runs.numbered([*journal[:fenced], launch, *journal[fenced:]]))
    assert checked("journal_consistent", run).validity is validity


def test_a_start_claims_without_a_fence_only_where_nothing_runs() -> None:
    down = runs.state(17.0, "colo", "operator-stopped", "down")
    claimed = Record(Kind.INTENT, act="start", step="promote", generation=1002, mono_s=18.0)
    begun = evidence(journal=runs.numbered([*runs.journal(), down, claimed]))
    assert checked("journal_consistent", begun).validity is VALID
    beside = evidence(journal=runs.numbered([*runs.journal(), claimed]))
    assert "generation 1002 was promoted without a fence" in counterexample(
        "journal_consistent", beside
    )


def test_a_proof_is_good_for_one_promotion() -> None:
    again = Record(Kind.INTENT, step="promote", generation=2, mono_s=18.0)
    run = evidence(journal=runs.numbered([*runs.journal(), again]))
    assert "generation 2 was promoted without a fence" in counterexample("journal_consistent", run)


def test_a_survivor_needs_a_claim() -> None:
    assert "survivor-runs, and no promotion was claimed" in counterexample(
        "journal_consistent", evidence(journal=runs.journal(without="promote"))
    )


def test_records_keep_their_order() -> None:
    first, second, *rest = runs.journal()
    swapped = evidence(journal=(second, first, *rest))
    assert "line 1 comes after line 2" in counterexample("journal_consistent", swapped)


def test_every_move_of_the_table_is_consistent_and_no_other() -> None:
    for before in Protection:
        for fact in Fact:
            for after in Protection:
                journal = (replace(runs.state(1.0, before, fact, after), seq=1),)
                verdict = checked("journal_consistent", evidence(journal=journal, events=()))
                claimed = fact in (Fact.SURVIVOR_RUNS, Fact.OPERATOR_CLEARED)
                foreseen = MOVES.get((before, fact), before) is after
                assert (verdict.validity is VALID) is (foreseen and not claimed), verdict


def test_a_fact_that_the_table_does_not_know_is_shown() -> None:
    odd = runs.state(18.0, "colo", "no-such-fact", "colo")
    run = evidence(journal=runs.numbered([*runs.journal(), odd]))
    assert "line 13: 'no-such-fact' is not a valid Fact" in counterexample(
        "journal_consistent", run
    )


def test_a_state_follows_the_one_before() -> None:
    torn = [record for record in runs.journal() if record.fact != "node-lost"]
    assert "found the pair failover" in counterexample(
        "journal_consistent", evidence(journal=runs.numbered(torn))
    )


# outages, protection, and what is left


def test_the_longest_silence_of_any_client_counts() -> None:
    slow = connected([op for op in runs.steadily() if op.n not in (4, 5)])
    run = at_work("redis-appends", slow)
    assert checked("outage_within", run, ms=3500.0).validity is VALID
    verdict = checked("outage_within", run, ms=2500.0)
    assert verdict.counterexample == ("load: 3000 ms of silence around power cut",)


def test_a_silence_that_ends_long_after_the_fault_is_felt_all_the_same() -> None:
    history = connected([*runs.steadily()[:8], *answered(19.0, 12)])
    verdict = checked("outage_within", at_work("redis-appends", history), ms=2000.0, within_s=5.0)
    assert "and then served again" in verdict.counterexample[0]


def test_a_client_that_had_ended_waits_for_nothing() -> None:
    busy = at_work("redis-appends", connected(runs.steadily()))
    gone = [*answered(6.0, 0, 3), runs.Op(7.0, 3, runs.INFO, -1, "closed 1")]
    beside = WorkloadRecord(Workload(name="gone", kind="http", clients=1), gone)
    run = replace(busy, works={**busy.works, "gone": beside})
    assert checked("outage_within", run, ms=2000.0).validity is VALID


def test_a_protection_that_comes_late_is_invalid_and_one_not_awaited_unknown() -> None:
    assert checked("reprotected_within", evidence(), s=1.95).validity is VALID
    assert checked("reprotected_within", evidence(), s=1.8).validity is INVALID
    cut = evidence(events=runs.events()[:7], journal=runs.journal()[:10], ended_s=12.0)
    assert checked("reprotected_within", cut, s=30.0).validity is UNKNOWN


def test_takeovers_are_counted_once() -> None:
    assert checked("failovers", evidence(), min=1, max=1).validity is VALID
    assert checked("failovers", evidence(), min=2).validity is INVALID
    assert checked("failovers", evidence(), max=0).validity is INVALID


def test_the_state_in_the_end_may_be_another_one() -> None:
    alone = evidence(view=LOST)
    assert checked("protected_at_end", alone, state="unprotected").validity is VALID


def test_a_record_under_way_may_be_on_one_side_only() -> None:
    run = at_work("redis-appends", runs.steadily())
    mid = Audit(7.995, "boot-1", {0: [0, 1, 2]}, {0: [0, 1]})
    last = Audit(19.0, "boot-1", {0: range(12)}, {0: range(12)})
    check = "disk_agrees_with_memory"
    assert checked(check, replace(run, audits=(mid, last))).validity is VALID
    assert "2 is on the disk only" in counterexample(
        check, replace(run, audits=(replace(mid, at_s=8.5), last))
    )
    short = replace(last, disk={0: range(11)}, memory={0: range(11)})
    assert "record 11 was acknowledged and is on neither" in counterexample(
        check, replace(run, audits=(short,))
    )


def test_audits_before_the_last_fault_prove_nothing() -> None:
    before = evidence(audits=evidence().audits[:1])
    assert checked("disk_agrees_with_memory", before).validity is UNKNOWN
    assert checked("one_boot", before).validity is UNKNOWN
    mute = evidence(audits=(evidence().audits[0], Audit(19.0, "")))
    assert checked("one_boot", mute).validity is UNKNOWN

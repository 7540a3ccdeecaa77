"""One history of a run: the figures of a recorded one, and agreement with simple definitions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import evidences, runs

from coloctl.chaos.evidence.records import ObservedEvent, takeovers_in
from coloctl.chaos.evidence.silences import Outage, Replies
from coloctl.chaos.evidence.states import StateChange
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.model.event import Kind, Record

pytestmark = pytest.mark.unit

KILL_S, FREEZE_S = 1003.0103, 1009.9990


# The recorded run: the primary a is killed, then the new secondary a freezes.


def test_an_outage_is_not_blamed_on_the_join_that_follows_it() -> None:
    kill, freeze = runs.recorded().chronicle.effects
    assert (kill.outage, kill.join_ms) == (Outage(305.0, 271.3), 2189.8)
    assert (freeze.outage, freeze.join_ms) == (Outage(460.8, 387.1), 692.1)
    assert (kill.lost_s, kill.again_s) == (1003.0407, 1006.9210)
    assert (freeze.lost_s, freeze.again_s) == (1010.1364, 1013.5165)
    assert (kill.ends_s, freeze.ends_s) == (kill.again_s, freeze.again_s)


def test_the_silences_that_ended_soon_after_a_fault_count_the_join_as_well() -> None:
    """What the checks of an outage and the benches measure."""
    replies = runs.recorded().chronicle.replies
    assert replies.outage(KILL_S, ended_by_s=KILL_S + 10) == Outage(2189.8, 3888.3)
    assert replies.outage(KILL_S, ended_by_s=KILL_S + 2).longest_ms == 305.0
    assert replies.outage(FREEZE_S, ended_by_s=FREEZE_S + 10) == Outage(692.1, 406.4)
    assert replies.outage(FREEZE_S, ended_by_s=FREEZE_S + 2).longest_ms == 460.8


def test_a_primary_may_be_heard_from_the_fence_and_serves_from_the_promotion() -> None:
    chronicle = runs.recorded().chronicle
    first, second = chronicle.primaries
    assert (first.node, first.from_s, first.to_s) == ("a", -math.inf, second.from_s)
    assert (second.node, second.to_s) == ("b", math.inf)
    assert (second.from_s, second.serves_s) == pytest.approx((1003.04319, 1003.06696))
    assert [chronicle.primary_at(at_s) for at_s in (0.0, 1003.05, 1003.07)] == ["a", "a", "b"]


def test_each_change_of_state_is_there_once_with_the_time_at_which_it_was_heard() -> None:
    states = runs.recorded().chronicle.states
    assert len(states) == 16
    assert all(one.heard for one in states)
    verdict = evidences.checked("never_failed", runs.recorded())
    assert verdict.because == "never failed, in 16 changes of state"
    assert [one.at_s for one in states[:2]] == [990.4366, 996.2838]
    assert [one.fact for one in runs.recorded().chronicle.left_protection] == ["node-lost"] * 2


def test_takeovers_pauses_and_frames_of_the_recorded_run() -> None:
    chronicle = runs.recorded().chronicle
    assert [one.survivor for one in chronicle.takeovers] == ["b", "b"]
    assert [one.takeover for one in chronicle.effects] == chronicle.takeovers
    assert len(chronicle.pauses) == chronicle.checkpoints(0.0, 2000.0) > 10
    assert chronicle.frames_after("a", 1003.02) == 0 < chronicle.frames_after("b", 1003.02)
    assert chronicle.first_frame_s("b", 1003.0) == 1003.0669


def test_gaps_in_the_service_are_those_of_all_clients_together() -> None:
    chronicle = runs.recorded().chronicle
    longest = {name: chronicle.service_gaps(name, 1) for name in ("appends", "slow")}
    assert [round(one.ms, 1) for found in longest.values() for one in found] == [2142.6, 2180.4]
    around = [one for one in chronicle.service_gaps("slow", 99) if one.from_s < KILL_S < one.to_s]
    assert [round(one.ms, 1) for one in around] == [304.8]


def test_nodes_and_protection_over_time() -> None:
    chronicle = runs.recorded().chronicle
    assert [one.what for one in chronicle.protection(1020.0)][:5] == [
        "unprotected", "resync", "migrating", "colo", "failover",
    ]  # fmt: skip
    nodes = chronicle.nodes(1020.0)
    assert [one.what for one in nodes["b"]] == ["absent", "joining", "secondary", "primary"]
    assert [one.what for one in nodes["a"]][:4] == ["primary", "dead", "joining", "secondary"]
    for periods in nodes.values():
        assert all(one.to_s == two.from_s for one, two in pairwise(periods))


# What no listener heard.


def test_a_run_whose_supervisor_was_killed_is_told_by_its_journal() -> None:
    mute = evidences.evidence(events=(), takeovers=()).chronicle
    assert [one.after for one in mute.states] == [
        "unprotected", "migrating", "colo", "failover", "unprotected", "migrating", "colo",
    ]  # fmt: skip
    assert not any(one.heard for one in mute.states)
    assert [one.survivor for one in mute.takeovers] == ["b"]
    assert [one.node for one in mute.primaries] == ["a", "b"]
    assert [one.lost for one in mute.promotions] == ["a"]
    assert mute.effects[0].again_s == 12.0


def test_a_failover_that_failed_is_no_takeover() -> None:
    failed = {**evidences.TIMELINE, "began_s": 8.0, "failed": "The fence did not succeed."}
    assert takeovers_in([failed, evidences.TIMELINE]) == [evidences.TAKEOVER]
    wrote = Record(Kind.OUTCOME, step="timeline", data=failed, mono_s=8.5)
    journal = evidences.numbered(sorted((*evidences.journal(), wrote), key=lambda one: one.mono_s))
    assert evidences.evidence(journal=journal).chronicle.takeovers == [evidences.TAKEOVER]


def test_a_guest_that_is_started_on_the_other_node_has_a_new_primary() -> None:
    launch = Record(Kind.OUTCOME, node="b", data={"launched": "primary", "pid": 9}, mono_s=15.0)
    journal = evidences.numbered([*evidences.journal()[:4], launch])
    chronicle = evidences.evidence(takeovers=(), events=(), journal=journal).chronicle
    assert [(one.node, one.serves_s) for one in chronicle.primaries] == [("a", 0.1), ("b", 15.0)]
    assert [chronicle.primary_at(at_s) for at_s in (14.0, 15.0)] == ["a", "b"]


def _caught_up(at_s: float, before: str, after: str) -> ObservedEvent:
    told = {"before": before, "after": after, "fact": "", "reason": "so it is"}
    return ObservedEvent(at_s, "STATE_CHANGED", told)


def test_what_a_listener_made_from_a_view_gives_way_to_the_journal() -> None:
    made = _caught_up(10.3, "colo", "unprotected")
    heard = [one for one in evidences.events() if one.at_s < 10.0 or one.at_s > 10.3]
    events = tuple(sorted([*heard, made], key=lambda one: one.at_s))
    chronicle = evidences.evidence(events=events).chronicle
    late = [(one.at_s, one.after, one.heard) for one in chronicle.states if 10.0 < one.at_s < 10.4]
    assert late == [(10.1, "failover", False), (10.2, "unprotected", False)]
    assert made.at_s not in [one.at_s for one in chronicle.states]
    alone = evidences.evidence(events=events, journal=()).chronicle
    assert StateChange(10.3, "colo", "unprotected", "", "so it is") in alone.states


def test_an_event_takes_the_record_just_before_it() -> None:
    """A change that comes again soon, of which the first time was not heard."""
    records = [
        evidences.state(at_s, before, fact, after)
        for at_s, before, fact, after in (
            (1.0, "colo", "node-lost", "failover"),
            (1.5, "failover", "survivor-runs", "unprotected"),
            (2.0, "unprotected", "checkpoint-completed", "colo"),
            (3.0, "colo", "node-lost", "failover"),
        )
    ]
    event = evidences.changed(3.02, "colo", "failover", fact="node-lost")
    journal = evidences.numbered(records)
    chronicle = evidences.evidence(events=(event,), journal=journal).chronicle
    lost = [(one.at_s, one.heard) for one in chronicle.left_protection]
    assert lost == [(1.0, False), (3.02, True)]


# Simple definitions that are slow.

times = st.lists(st.floats(0, 30), max_size=40)
clients = st.lists(times, min_size=1, max_size=3)


def _history(replies: list[list[float]]) -> list[Op]:
    return [
        Op(at_s, number, OpStatus.OK, n)
        for number, told in enumerate(replies)
        for n, at_s in enumerate(sorted(told))
    ]


@given(clients, st.floats(0, 30), st.floats(0, 30), st.floats(0, 40))
def test_silences_are_those_of_the_slow_and_simple_definition(
    replies: list[list[float]], from_s: float, length_s: float, by_s: float
) -> None:
    to_s = from_s + length_s
    longest = []
    for told in map(sorted, replies):
        gaps = [(b - a, b) for a, b in pairwise(told) if b > from_s and a < to_s and b <= by_s]
        longest += [max(gaps)] if gaps else []
    expected = Outage(None, None)
    if longest:
        first_s = min(end for _, end in longest) - from_s
        expected = Outage(round(max(longest)[0] * 1000, 1), round(first_s * 1000, 1))
    found = Replies({"w": _history(replies)})
    assert found.outage(from_s, began_before_s=to_s, ended_by_s=by_s) == expected
    assert found.outage(from_s, workload="other") == Outage(None, None)


@given(clients, st.floats(0, 30))
def test_a_silence_over_a_moment_ends_with_the_next_reply_or_with_the_run(
    replies: list[list[float]], at_s: float
) -> None:
    found = Replies({"w": _history(replies)}).spanning(at_s, 31.0)
    served = [number for number, told in enumerate(replies) if any(one <= at_s for one in told)]
    assert [one.client for one in found] == served
    for one in found:
        told = sorted(replies[one.client])
        assert one.from_s == max(at for at in told if at <= at_s)
        assert one.to_s == next((at for at in told if at > at_s), 31.0)
        assert one.ended is (one.to_s != 31.0)

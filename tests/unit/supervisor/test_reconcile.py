"""Everything that can be believed of a pair, against everything that can be found of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from coloctl.host.base import Identity
from coloctl.model import event
from coloctl.model.event import Kind, Record
from coloctl.model.pair import NODES, NodeName, Role, other
from coloctl.model.protection import Fact, Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.supervisor.reconcile import (
    ABSENT,
    Belief,
    FoundQemu,
    KnownQemu,
    Move,
    MovePlan,
    believe,
    reconcile,
)

pytestmark = pytest.mark.unit

ACTS = ("start", "failover", "stop", "set")
WITH_CHECKPOINT = (Protection.COLO, Protection.FAILOVER, Protection.FAILED)


def found(role: Role, state: RunState | None, mode: COLOMode = COLOMode.NONE) -> FoundQemu:
    migration = MigrationStatus.COLO if mode is not COLOMode.NONE else MigrationStatus.NONE
    return FoundQemu(role, alive=True, run_state=state, migration=migration, colo_mode=mode)


DEAD = {role: FoundQemu(role, alive=False) for role in Role}
PRIMARIES = {
    "never launched": ABSENT,
    "dead": DEAD[Role.PRIMARY],
    "held": replace(found(Role.PRIMARY, RunState.PRELAUNCH), held=True),
    "stopped": found(Role.PRIMARY, RunState.PAUSED),
    "runs": found(Role.PRIMARY, RunState.RUNNING),
    "in colo": found(Role.PRIMARY, RunState.RUNNING, COLOMode.PRIMARY),
    "in a checkpoint": found(Role.PRIMARY, RunState.COLO, COLOMode.PRIMARY),
    "silent": FoundQemu(Role.PRIMARY, alive=True),
    "not known": FoundQemu(Role.PRIMARY, alive=True, known=False),
}
SECONDARIES = {
    "never launched": ABSENT,
    "dead": DEAD[Role.SECONDARY],
    "waits": found(Role.SECONDARY, RunState.INMIGRATE),
    "in colo": found(Role.SECONDARY, RunState.RUNNING, COLOMode.SECONDARY),
    "promoted": found(Role.SECONDARY, RunState.RUNNING),
    "silent": FoundQemu(Role.SECONDARY, alive=True),
    "replaced": DEAD[Role.PRIMARY],
    "not known": FoundQemu(Role.SECONDARY, alive=True, known=False),
    "replaced, not known": FoundQemu(Role.PRIMARY, alive=True, known=False),
}


def subsets(words: tuple[str, ...]) -> Iterator[dict[str, dict[str, object]]]:
    for count in range(len(words) + 1):
        for chosen in itertools.combinations(words, count):
            yield {word: {} for word in chosen}


@functools.cache
def everything() -> list[tuple[Belief, dict[NodeName, FoundQemu], MovePlan]]:
    """Every belief beside every finding, the primary on either node, and what is then planned."""
    missed: tuple[frozenset[NodeName], ...] = (frozenset(), frozenset({"a"}), frozenset({"b"}))
    chosen: tuple[NodeName | None, ...] = (None, "a", "b")
    beliefs = [
        Belief(protection=state, acts=acts, missed=gap, survivor=survivor)
        for state, acts, gap, survivor in itertools.product(
            Protection, subsets(ACTS), missed, chosen
        )
    ]
    pairs: list[dict[NodeName, FoundQemu]] = []
    for one, two in itertools.product(PRIMARIES.values(), SECONDARIES.values()):
        pairs += [{"a": one, "b": two}, {"a": two, "b": one}]
    return [(belief, pair, reconcile(belief, pair)) for pair in pairs for belief in beliefs]


def living(pair: dict[NodeName, FoundQemu]) -> set[NodeName]:
    return {node for node in NODES if pair[node].alive}


def may_run_alone(plan: MovePlan, belief: Belief, pair: dict[NodeName, FoundQemu]) -> set[NodeName]:
    """The nodes that run a guest of their own once the plan is carried out.

    No plan reaches a node that is not known, so it does not count here; see the tests of those.
    """
    alive = {node for node in living(pair) if pair[node].known}
    match plan.move:
        case Move.END | Move.GONE:
            return set()
        case Move.ADOPT_ALONE | Move.ROLL_BACK_PROTECT:
            assert plan.node is not None
            return {plan.node}
        case Move.FINISH_FAILOVER:
            # Whom the act chooses itself is one of the two, after a proof for the other.
            return {plan.node} if plan.node is not None else set()
        case Move.ADOPT_COLO:
            return {plan.node} if plan.node is not None else set()
        case Move.HAND_OVER:
            left = alive - {plan.lost}
            return {node for node in left if pair[node].role is Role.PRIMARY
                    or pair[node].promoted}  # fmt: skip


def test_no_plan_leaves_two_guests_running() -> None:
    for belief, pair, plan in everything():
        assert len(may_run_alone(plan, belief, pair)) <= 1, (belief, pair, plan)


def test_a_secondary_lives_on_only_with_a_whole_checkpoint() -> None:
    for belief, pair, plan in everything():
        if plan.node is None or pair[plan.node].role is not Role.SECONDARY:
            continue
        if plan.move in (Move.ADOPT_ALONE, Move.ROLL_BACK_PROTECT):  # it serves already
            peer = pair[other(plan.node)]
            assert pair[plan.node].promoted and (not peer.alive or peer.never_ran)
            continue
        assert plan.move is Move.FINISH_FAILOVER, (belief, pair, plan)
        assert belief.protection is Protection.FAILOVER and "failover" in belief.acts
        assert plan.node not in belief.missed


def test_nobody_lives_on_who_is_dead() -> None:
    for belief, pair, plan in everything():
        if plan.node is not None and living(pair):
            assert plan.node in living(pair) or len(living(pair)) == 2, (belief, pair, plan)


def test_a_guest_that_runs_is_ended_only_by_a_stop() -> None:
    for belief, pair, plan in everything():
        ends = plan.move in (Move.END, Move.GONE)
        runs = [
            one
            for one in pair.values()
            if one.alive and one.role is Role.PRIMARY and one.run_state is not RunState.PRELAUNCH
        ]
        runs += [one for one in pair.values() if one.promoted]
        if ends and runs:
            assert plan.move is Move.END and "stop" in belief.acts, (belief, pair, plan)


def test_where_nothing_lives_nothing_is_adopted() -> None:
    for _, pair, plan in everything():
        if not living(pair):
            assert plan.move in (Move.END, Move.GONE)


def unknown(pair: dict[NodeName, FoundQemu]) -> set[NodeName]:
    return {node for node in NODES if not pair[node].known}


def test_a_node_that_is_not_known_never_counts_as_dead() -> None:
    for belief, pair, plan in everything():
        if unknown(pair):
            assert plan.move is not Move.GONE, (belief, pair, plan)
            assert plan.move is not Move.END or "stop" in belief.acts, (belief, pair, plan)


def test_no_plan_rests_on_a_node_that_is_not_known() -> None:
    for belief, pair, plan in everything():
        assert plan.node not in unknown(pair), (belief, pair, plan)
        if unknown(pair):
            assert plan.move is not Move.ADOPT_COLO, (belief, pair, plan)
        if plan.move is Move.HAND_OVER:
            assert plan.lost not in unknown(pair)


def test_a_node_is_given_up_unseen_only_beside_a_guest_that_is_seen_to_run_alone() -> None:
    """Or by a failover that was chosen before, whose fence decides; or where it held nothing."""
    for belief, pair, plan in everything():
        if plan.lost not in unknown(pair) and plan.move is not Move.ADOPT_ALONE:
            continue
        if not unknown(pair):
            continue
        assert plan.node is not None and pair[plan.node].alive and pair[plan.node].known
        if plan.move is Move.FINISH_FAILOVER:
            assert belief.survivor == plan.node and belief.protection is Protection.FAILOVER
        else:
            assert plan.move in (Move.ADOPT_ALONE, Move.ROLL_BACK_PROTECT)
            assert belief.protection not in WITH_CHECKPOINT, (belief, pair, plan)
            assert pair[plan.node].role is Role.PRIMARY or pair[plan.node].promoted


def test_a_guest_is_never_ended_because_its_peer_is_not_known() -> None:
    for belief, pair, plan in everything():
        runs = {
            node
            for node, one in pair.items()
            if one.alive and one.known and (one.promoted or one.run_state is RunState.RUNNING)
            and one.colo_mode is not COLOMode.SECONDARY
        }  # fmt: skip
        if unknown(pair) and "stop" not in belief.acts:
            assert plan.lost not in runs, (belief, pair, plan)


def test_a_stop_that_was_asked_for_is_finished() -> None:
    for belief, _, plan in everything():
        if "stop" in belief.acts:
            assert plan == MovePlan(Move.END)


def test_colo_is_adopted_only_where_both_are_in_it() -> None:
    for belief, pair, plan in everything():
        if plan.move is Move.ADOPT_COLO:
            assert belief.protection is Protection.COLO
            assert {one.colo_mode for one in pair.values()} == {
                COLOMode.PRIMARY,
                COLOMode.SECONDARY,
            }


def test_nothing_but_an_operator_leaves_failed() -> None:
    for belief, pair, plan in everything():
        if belief.protection is Protection.FAILED and living(pair) and "stop" not in belief.acts:
            assert plan.move is Move.HAND_OVER


@pytest.mark.parametrize(
    ("state", "acts", "primary", "secondary", "move"),
    [
        (Protection.COLO, (), "in colo", "in colo", Move.ADOPT_COLO),
        (Protection.COLO, ("set",), "in a checkpoint", "in colo", Move.ADOPT_COLO),
        (Protection.COLO, ("failover",), "in colo", "in colo", Move.ADOPT_COLO),
        (Protection.COLO, (), "dead", "in colo", Move.HAND_OVER),
        (Protection.COLO, (), "in colo", "dead", Move.HAND_OVER),
        (Protection.COLO, (), "silent", "in colo", Move.HAND_OVER),
        (Protection.COLO, (), "dead", "dead", Move.GONE),
        (Protection.UNPROTECTED, (), "runs", "never launched", Move.ADOPT_ALONE),
        (Protection.UNPROTECTED, (), "runs", "replaced", Move.ADOPT_ALONE),
        (Protection.UNPROTECTED, ("failover",), "runs", "replaced", Move.ADOPT_ALONE),
        (Protection.UNPROTECTED, ("start",), "runs", "waits", Move.ROLL_BACK_PROTECT),
        (Protection.UNPROTECTED, (), "dead", "never launched", Move.GONE),
        (Protection.RESYNC, ("start",), "stopped", "waits", Move.ROLL_BACK_PROTECT),
        (Protection.MIGRATING, ("start",), "in colo", "in colo", Move.ROLL_BACK_PROTECT),
        (Protection.MIGRATING, ("start",), "held", "waits", Move.END),
        (Protection.MIGRATING, ("start",), "dead", "in colo", Move.GONE),
        (Protection.DOWN, ("start",), "held", "never launched", Move.END),
        (Protection.DOWN, ("start",), "runs", "never launched", Move.ROLL_BACK_PROTECT),
        (Protection.DOWN, ("start",), "never launched", "never launched", Move.END),
        (Protection.DOWN, (), "never launched", "never launched", Move.GONE),
        (Protection.FAILOVER, ("failover",), "dead", "in colo", Move.FINISH_FAILOVER),
        (Protection.FAILOVER, ("failover",), "dead", "promoted", Move.FINISH_FAILOVER),
        (Protection.FAILOVER, ("failover",), "runs", "dead", Move.FINISH_FAILOVER),
        (Protection.FAILOVER, (), "in colo", "dead", Move.HAND_OVER),
        (Protection.FAILOVER, ("failover",), "dead", "dead", Move.GONE),
        (Protection.COLO, (), "in colo", "not known", Move.HAND_OVER),
        (Protection.COLO, (), "not known", "in colo", Move.HAND_OVER),
        (Protection.COLO, (), "dead", "not known", Move.HAND_OVER),
        (Protection.COLO, (), "not known", "not known", Move.HAND_OVER),
        (Protection.COLO, (), "not known", "promoted", Move.HAND_OVER),
        (Protection.COLO, ("stop",), "in colo", "not known", Move.END),
        (Protection.UNPROTECTED, (), "runs", "not known", Move.ADOPT_ALONE),
        (Protection.UNPROTECTED, (), "runs", "replaced, not known", Move.ADOPT_ALONE),
        (Protection.UNPROTECTED, (), "not known", "never launched", Move.HAND_OVER),
        (Protection.UNPROTECTED, (), "not known", "dead", Move.HAND_OVER),
        (Protection.UNPROTECTED, ("protect",), "runs", "not known", Move.ROLL_BACK_PROTECT),
        (Protection.MIGRATING, ("start",), "held", "not known", Move.ROLL_BACK_PROTECT),
        (Protection.MIGRATING, ("start",), "in colo", "not known", Move.ROLL_BACK_PROTECT),
        (Protection.MIGRATING, ("start",), "not known", "in colo", Move.HAND_OVER),
        (Protection.MIGRATING, ("start",), "dead", "not known", Move.HAND_OVER),
        (Protection.DOWN, ("start",), "not known", "never launched", Move.HAND_OVER),
        (Protection.FAILED, (), "runs", "not known", Move.HAND_OVER),
    ],
)
def test_what_is_done(
    state: Protection, acts: Iterable[str], primary: str, secondary: str, move: Move
) -> None:
    belief = Belief(protection=state, acts={act: {} for act in acts})
    pair: dict[NodeName, FoundQemu] = {"a": PRIMARIES[primary], "b": SECONDARIES[secondary]}
    assert reconcile(belief, pair).move is move


def test_of_two_who_live_the_one_that_was_chosen_lives_on() -> None:
    pair: dict[NodeName, FoundQemu] = {"a": PRIMARIES["in colo"], "b": SECONDARIES["in colo"]}
    for chosen in NODES:
        belief = Belief(protection=Protection.FAILOVER, acts={"failover": {}}, survivor=chosen)
        assert reconcile(belief, pair) == MovePlan(Move.FINISH_FAILOVER, chosen, other(chosen))


def test_a_failover_goes_on_only_with_the_survivor_that_was_chosen_and_is_seen() -> None:
    for one, two in (("not known", "in colo"), ("in colo", "not known")):
        pair: dict[NodeName, FoundQemu] = {"a": PRIMARIES[one], "b": SECONDARIES[two]}
        for chosen in (None, *NODES):
            belief = Belief(protection=Protection.FAILOVER, acts={"failover": {}}, survivor=chosen)
            goes_on = chosen is not None and pair[chosen].known
            expected = MovePlan(Move.FINISH_FAILOVER, chosen, other(chosen)) if chosen else None
            plan = reconcile(belief, pair)
            assert plan == (expected if goes_on else MovePlan(Move.HAND_OVER))


def journal(*records: Record) -> tuple[Record, ...]:
    return tuple(
        replace(record, seq=number, mono_s=float(number))
        for number, record in enumerate(records, start=1)
    )


def launch(node: str, role: Role, pid: int) -> Record:
    data = {"launched": role, "pid": pid, "start-time": 7}
    return Record(Kind.OUTCOME, act="start", step="launch", node=node, data=data)


def moved(before: Protection, fact: Fact, after: Protection, **data: object) -> Record:
    return Record(Kind.STATE, before=before, fact=fact, after=after,
                  data={"reason": "why", **data})  # fmt: skip


LIFE = journal(
    Record(Kind.INTENT, act="start", generation=0, data={"protect": True}),
    launch("a", Role.PRIMARY, 10),
    launch("b", Role.SECONDARY, 11),
    moved(Protection.MIGRATING, Fact.CHECKPOINT_COMPLETED, Protection.COLO),
    Record(Kind.OUTCOME, act="start"),
    Record(Kind.NOTE, data={"first-connection": event.COVERED}),
    Record(Kind.OUTCOME, act="set", data={"checkpoint-delay": 70, "compare-timeout": 400}),
    Record(Kind.OUTCOME, act="set", data={"checkpoint-mode": "adaptive"}),
    Record(Kind.NOTE, data={"pace": 140, "why": "so"}),
    Record(Kind.OUTCOME, act="set", data={"compare-timeout": 500}),
    Record(Kind.OBSERVATION, node="b", data={"missed": "write", "by": "nbd0"}),
    moved(Protection.COLO, Fact.NODE_LOST, Protection.FAILOVER, **{"exposed-since": 9.0}),
    Record(Kind.INTENT, act="failover", generation=0, data={"force": True, "to": "b"}),
    Record(Kind.INTENT, act="failover", step="promote", generation=4),
    Record(Kind.NOTE, data={"paused": True}),
)


def test_belief_is_what_the_journal_says() -> None:
    assert believe(LIFE) == Belief(
        protection=Protection.FAILOVER,
        reason="why",
        generation=4,
        since_s=12.0,
        exposed_since_s=9.0,
        acts={"failover": {"force": True, "to": "b"}},
        launches={
            "a": KnownQemu(Role.PRIMARY, Identity(10, 7)),
            "b": KnownQemu(Role.SECONDARY, Identity(11, 7)),
        },
        survivor="b",
        missed=frozenset({"b"}),
        settings={
            "checkpoint-delay": 70,
            "compare-timeout": 500,
            "checkpoint-mode": "adaptive",
        },
        pace_ms=140,
        paused=True,
        covered=True,
    )


def test_what_a_rotated_journal_keeps_gives_the_same_belief() -> None:
    for length in range(len(LIFE) + 1):
        kept = event.worth_keeping(LIFE[:length])
        assert believe(kept) == believe(LIFE[:length])


def test_a_promoted_qemu_is_the_primary_and_its_missed_writes_are_forgiven() -> None:
    later = journal(*LIFE, launch("b", Role.PRIMARY, 11), launch("a", Role.SECONDARY, 12))
    belief = believe(later)
    assert belief.launches["b"].role is Role.PRIMARY and belief.launches["a"].identity.pid == 12
    assert belief.missed == frozenset()


def test_a_new_session_waits_for_its_first_connection_anew() -> None:
    entered = moved(Protection.MIGRATING, Fact.CHECKPOINT_COMPLETED, Protection.COLO)
    assert believe(LIFE).covered and not believe(journal(*LIFE, entered)).covered


def left_behind(node: str, role: str, pid: int = 0) -> Record:
    data: dict[str, object] = {event.LEFT_BEHIND: role}
    data |= {"pid": pid, "start-time": 7} if role else {"proof": "identity-gone"}
    return Record(Kind.OUTCOME, act="failover", step="left-behind", node=node, data=data)


def test_a_launch_whose_end_is_proven_is_known_to_be_gone() -> None:
    """Of each node the latest proof is kept; a later launch is another QEMU."""
    gone = Record(
        Kind.OBSERVATION, node="b", data={event.ENDED: "sigkill", "pid": 13, "start-time": 7}
    )
    records = journal(*LIFE, launch("b", Role.SECONDARY, 13), gone)
    for kept in (records, event.worth_keeping(records)):
        assert believe(kept).launches["b"].ended and not believe(kept).launches["a"].ended
    again = journal(*records, launch("b", Role.SECONDARY, 14))
    assert not believe(again).launches["b"].ended


def test_a_qemu_that_was_left_behind_is_one_until_it_is_proven_gone() -> None:
    """No launch ends that, and a rotated journal keeps it."""
    left = left_behind("b", Role.SECONDARY, 11)
    records = journal(*LIFE, left, launch("a", Role.PRIMARY, 12), launch("b", Role.SECONDARY, 13))
    assert believe(records).left == {"b": KnownQemu(Role.SECONDARY, Identity(11, 7))}
    assert believe(event.worth_keeping(records)).left == believe(records).left
    ended = journal(*records, left_behind("b", ""))
    assert believe(ended).left == {} == believe(event.worth_keeping(ended)).left
    again = journal(*ended, left_behind("b", Role.SECONDARY, 13))
    assert believe(again).left == {"b": KnownQemu(Role.SECONDARY, Identity(13, 7))}


def test_a_record_of_a_qemu_left_behind_names_a_process_or_its_end() -> None:
    for record in (left_behind("b", "secondary", 11), left_behind("b", "")):
        assert Record.from_json(replace(record, seq=1).to_json()).data == record.data
    for data in ({event.LEFT_BEHIND: "secondary"}, {event.LEFT_BEHIND: "guest", "pid": 1,
                                                    "start-time": 1}):  # fmt: skip
        with pytest.raises(ValueError, match="must name a role"):
            Record.from_json(Record(Kind.OUTCOME, data=data, seq=1).to_json())

"""The table of moves, exhausted, and lived through at random."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coloctl.model.protection import MOVES, Fact, Protection, Transition, advance

pytestmark = pytest.mark.unit

EVERY = list(product(Protection, Fact))

#: What only a person does.
BY_AN_OPERATOR = {Fact.OPERATOR_STOPPED, Fact.OPERATOR_CLEARED}


def reachable(start: Protection, facts: set[Fact]) -> set[Protection]:
    found, fresh = {start}, [start]
    for state in fresh:
        after = {advance(state, fact).after for fact in facts} - found
        found |= after
        fresh += after
    return found


@pytest.mark.parametrize(("state", "fact"), EVERY)
def test_every_fact_means_something_or_nothing_in_every_state(
    state: Protection, fact: Fact
) -> None:
    step = advance(state, fact)
    assert (step.before, step.fact) == (state, fact)
    assert step.listed is ((state, fact) in MOVES)
    if not step.listed:
        assert step.after is state
        assert "the state stays" in step.sentence()
    assert str(fact) in step.sentence()


def test_no_move_is_a_stand_still() -> None:
    assert not [move for move, after in MOVES.items() if move[0] is after]


def test_every_state_is_reached_from_nothing() -> None:
    assert reachable(Protection.DOWN, set(Fact)) == set(Protection)


@pytest.mark.parametrize("state", Protection)
def test_every_state_leads_to_nothing_again(state: Protection) -> None:
    """An operator can always end a pair, at once."""
    assert Protection.DOWN in reachable(state, {Fact.OPERATOR_STOPPED})


def test_every_fact_moves_something() -> None:
    assert {fact for _, fact in MOVES} == set(Fact)


@pytest.mark.parametrize("fact", sorted(set(Fact) - BY_AN_OPERATOR))
def test_broken_stays_broken_until_a_person_says_otherwise(fact: Fact) -> None:
    assert advance(Protection.FAILED, fact).after is Protection.FAILED


def test_protected_is_entered_by_a_complete_checkpoint_alone() -> None:
    into = [move for move, after in MOVES.items() if after is Protection.COLO]
    assert into == [(Protection.MIGRATING, Fact.CHECKPOINT_COMPLETED)]


@pytest.mark.parametrize(("state", "fact"), EVERY)
def test_a_survivor_runs_only_after_a_node_was_lost(state: Protection, fact: Fact) -> None:
    if advance(state, fact).listed and fact is Fact.SURVIVOR_RUNS:
        assert state is Protection.FAILOVER
    if advance(state, fact).after is Protection.FAILOVER and state is not Protection.FAILOVER:
        assert (state, fact) == (Protection.COLO, Fact.NODE_LOST)


@given(st.lists(st.sampled_from(list(Fact))))
def test_a_history_can_be_replayed(facts: list[Fact]) -> None:
    state = Protection.DOWN
    steps: list[Transition] = []
    for fact in facts:
        steps.append(advance(state, fact))
        state = steps[-1].after
    for before, after in pairwise(steps):
        assert before.after is after.before


class Life(RuleBasedStateMachine):
    """A pair to which anything happens at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Protection.DOWN
        self.complete = False  #: a checkpoint of this session was completed
        self.failed = False

    @rule(fact=st.sampled_from(list(Fact)))
    def happen(self, fact: Fact) -> None:
        step = advance(self.state, fact)
        self.state = step.after
        if not step.listed:
            return
        if fact is Fact.CHECKPOINT_COMPLETED:
            self.complete = True
        elif self.state not in (Protection.COLO, Protection.FAILOVER):
            self.complete = False
        self.failed = fact is Fact.FAILOVER_FAILED or (self.failed and fact not in BY_AN_OPERATOR)

    @invariant()
    def protected_means_that_a_checkpoint_is_complete(self) -> None:
        if self.state in (Protection.COLO, Protection.FAILOVER):
            assert self.complete

    @invariant()
    def a_failure_is_never_forgotten(self) -> None:
        assert self.failed is (self.state is Protection.FAILED)


TestLife = Life.TestCase

"""The search for an order, against every order there is; money, against a bank that is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evidences import INVOKE, OK, Op, at_work, checked

from coloctl.chaos.checks.linear import NEVER, Operation, OperationKind, search
from coloctl.chaos.checks.verdict import Validity

pytestmark = pytest.mark.unit

VALUES = st.sampled_from([None, 1, 2])
MOMENTS = st.integers(0, 8).map(float)


@st.composite
def acts(draw: Any) -> Operation:
    kind = draw(st.sampled_from(OperationKind))
    called_s = draw(MOMENTS)
    took_s = draw(st.sampled_from([0.5, 1.5, 4.5, NEVER]))
    return Operation(0, kind, called_s, called_s + took_s, draw(VALUES), draw(VALUES))


def by_brute_force(history: Sequence[Operation]) -> bool:
    """Whether any order of any choice of the open ones is what a register would have done."""
    answered = [act for act in history if not act.open]
    opened = [act for act in history if act.open]
    for chosen in product([True, False], repeat=len(opened)):
        kept = [*answered, *(act for act, wanted in zip(opened, chosen, strict=True) if wanted)]
        if any(_possible(order) for order in permutations(kept)):
            return True
    return False


def _possible(order: Sequence[Operation]) -> bool:
    value: Any = None
    for place, act in enumerate(order):
        if any(later.answered_s < act.called_s for later in order[place + 1 :]):
            return False
        fits, value = act.after(value)
        if not fits:
            return False
    return True


@given(st.lists(acts(), max_size=5))
def test_the_search_agrees_with_every_order(history: list[Operation]) -> None:
    assert search(history).linearizable is by_brute_force(history)


@given(st.lists(st.tuples(st.sampled_from(["w", "r"]), st.integers(0, 3)), min_size=1, max_size=60))
def test_one_register_is_always_linearizable_and_cheap(told: list[tuple[str, int]]) -> None:
    """Operations that overlap by three, each done in the middle of its time."""
    value, history = None, []
    for at_s, (what, new) in enumerate(told):
        value = new if what == "w" else value
        kind = OperationKind.WRITE if what == "w" else OperationKind.READ
        history.append(Operation(at_s % 3, kind, at_s - 1.0, at_s + 1.0, value))
    found = search(history)
    assert found.linearizable is True
    assert found.states <= 20 * len(history)


def test_a_stale_read_is_shown_with_what_fits() -> None:
    found = search(
        [
            Operation(0, OperationKind.WRITE, 0, 1, "old"),
            Operation(0, OperationKind.WRITE, 2, 3, "new"),
            Operation(1, OperationKind.READ, 4, 5, "old"),
        ]
    )
    assert (found.linearizable, found.placed, found.value) == (False, 2, "new")
    assert [act.sentence() for act in found.stuck] == ["client 1: read of 'old'"]


def test_a_long_history_takes_no_long_search() -> None:
    history = [
        Operation(n % 4, kind, n - 0.9, n + 0.9, n - (kind is OperationKind.READ))
        for n in range(1, 4000)
        for kind in ((OperationKind.WRITE,) if n % 2 else (OperationKind.READ,))
    ]
    found = search(history)
    assert found.linearizable is True


ACCOUNTS = ("a", "b", "c")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["transfer", "lost", "read"]),
        st.sampled_from(ACCOUNTS),
        st.sampled_from(ACCOUNTS),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=30,
)


def _bank(steps: list[tuple[str, str, str, int]]) -> tuple[list[Op], dict[str, Any]]:
    """What one client does with a bank that is right; a lost transfer is done, and never told."""
    money = dict.fromkeys(ACCOUNTS, 100)
    history = [Op(5.0, 0, OK, 0, f="read", value=dict(money))]
    done = -1
    for n, (what, source, target, amount) in enumerate([*steps, ("read", "a", "a", 1)], start=1):
        at_s = 6.0 + 9.0 * n / len(steps)
        if what == "read":
            history.append(Op(at_s, 0, OK, n, f="read", value=dict(money)))
            continue
        money[source] -= amount
        money[target] += amount
        done = n
        move = {"from": source, "to": target, "amount": amount}
        history.append(Op(at_s, 0, INVOKE, n, f="transfer", value=move))
        if what == "transfer":
            history.append(Op(at_s + 0.01, 0, OK, n, f="transfer", value=move))
    return history, {"balances": money, "done": {0: done}}


@given(STEPS)
def test_a_bank_that_is_right_is_valid(steps: list[tuple[str, str, str, int]]) -> None:
    history, kept = _bank(steps)
    assert bank_sum(history, kept) is Validity.VALID


@given(STEPS, st.sampled_from(ACCOUNTS), st.sampled_from(ACCOUNTS), st.integers(1, 5))
def test_money_that_appears_or_moves_by_itself_is_seen(
    steps: list[tuple[str, str, str, int]], source: str, target: str, amount: int
) -> None:
    history, kept = _bank(steps)
    held = dict(kept["balances"])
    held[target] += amount
    if source != target and kept["done"][0] > 0:  # then the sum is right, and the amounts are not
        held[source] -= amount
    assert bank_sum(history, {**kept, "balances": held}) is Validity.INVALID


@given(STEPS, st.integers(0, 30), st.sampled_from(ACCOUNTS))
def test_one_read_of_another_sum_is_seen(
    steps: list[tuple[str, str, str, int]], which: int, account: str
) -> None:
    history, kept = _bank(steps)
    reads = [place for place, op in enumerate(history) if op.f == "read"][1:]
    place = reads[which % len(reads)]
    torn = {**history[place].value, account: history[place].value[account] - 1}
    history[place] = replace(history[place], value=torn)
    assert bank_sum(history, kept) is Validity.INVALID


def test_an_account_may_be_forbidden_to_fall_below_nothing() -> None:
    history, kept = _bank([("transfer", "a", "b", 9)] * 12)
    assert bank_sum(history, kept) is Validity.VALID
    assert bank_sum(history, kept, overdraft=False) is Validity.INVALID
    assert bank_sum(history, kept, total=299) is Validity.INVALID


def bank_sum(history: list[Op], kept: Any, **params: Any) -> Validity:
    run = at_work("redis-transfers", history, kept)
    return checked("bank_sum", run, before_min=0, after_min=0, **params).validity

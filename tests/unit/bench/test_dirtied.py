"""How the pauses of a plain and an encrypted pair are compared, by what the guest changed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coloctl.bench.dirtied import DirtyPlan, ratios, row_of, turns
from coloctl.bench.stretches import Stretch
from coloctl.cli.bench_options import amounts
from coloctl.errors import UsageError

pytestmark = pytest.mark.unit


def test_the_two_pairs_take_turns_in_either_order_equally_often() -> None:
    plan = DirtyPlan((1, 16), rounds=2)
    first, second = ([*turns(plan, number)] for number in range(2))
    assert first == [(1, False), (1, True), (16, True), (16, False)]
    assert second == [(1, True), (1, False), (16, False), (16, True)]
    alone = DirtyPlan((4,), tls=(False,))
    assert [*turns(alone, 1)] == [(4, False)]


def test_a_ratio_is_that_of_all_rounds_and_its_spread_that_of_each() -> None:
    pauses: dict[tuple[int, bool], list[Sequence[float]]] = {
        (1, False): [[10.0, 10.0, 90.0], [20.0, 20.0]],
        (1, True): [[15.0, 15.0, 15.0], [40.0, 40.0]],
    }
    (found,) = ratios(pauses, (1,))
    assert found == {"dirty_mib": 1, "p50": 0.75, "low": 1.5, "high": 2.0}


@pytest.mark.parametrize("missing", [(1, False), (1, True)])
def test_a_ratio_needs_both_pairs(missing: tuple[int, bool]) -> None:
    pauses = {key: [[5.0]] for key in ((1, False), (1, True)) if key != missing}
    assert ratios(pauses, (1,)) == []
    assert ratios({**pauses, missing: [[]]}, (1,)) == []


def test_a_row_says_what_lay_between_two_checkpoints() -> None:
    row = row_of(Stretch(0.0, 2.0, [10.0, 30.0]), 7, 3 << 20)
    assert row["checkpoint_pause_ms"]["p50"] == 10.0
    assert (row["rounds_per_checkpoint"], row["wire_mib_per_checkpoint"]) == (3.5, 1.5)
    none = row_of(Stretch(0.0, 2.0), 7, 3 << 20)
    assert none["rounds_per_checkpoint"] is none["wire_mib_per_checkpoint"] is None


def test_amounts_of_memory_are_different_numbers_of_mib() -> None:
    assert amounts("1,16") == (1, 16)
    for wrong in ("", "x", "0", "65", "1,1", "1,,2"):
        with pytest.raises(UsageError, match="not a list of amounts"):
            amounts(wrong)

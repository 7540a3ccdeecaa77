"""Many measurements in few numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.chaos.run.figures import histogram, quantile, summary

pytestmark = pytest.mark.unit

MEASURED = st.floats(min_value=0, max_value=1e6, allow_nan=False)


def test_a_quantile_is_a_value_that_was_measured() -> None:
    assert quantile([], 0.5) is None
    assert quantile([7.0], 0.99) == 7.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([4.0, 3.0, 2.0, 1.0], 0.5) == 2.0
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile(range(1, 21), 0.99) == 20


@given(st.lists(MEASURED, min_size=1), st.floats(0.001, 1))
def test_so_many_values_do_not_exceed_a_quantile(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-9)
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_a_summary_leaves_out_what_nobody_knows() -> None:
    assert summary([None, 2.0, 1.0, None]) == {"n": 2, "p50": 1.0, "p99": 2.0, "max": 2.0}
    assert summary([]) == {"n": 0, "p50": None, "p99": None, "max": None}


@given(st.lists(MEASURED, max_size=200), st.integers(1, 20))
def test_a_histogram_holds_every_value(values: list[float], most: int) -> None:
    bins = histogram(values, most)
    assert len(bins) <= most
    assert sum(one.count for one in bins) == len(values)
    for one, following in pairwise(bins):
        assert one.high == pytest.approx(following.low)
    if values:
        assert bins[0].low <= min(values)
        assert bins[-1].high > max(values) or bins[-1].high == pytest.approx(max(values))
        assert bins[0].count
        assert bins[-1].count

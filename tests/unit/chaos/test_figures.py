"""Many measurements in few numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.chaos.run.figures import histogram, summary

pytestmark = pytest.mark.unit

MEASURED = st.floats(min_value=0, max_value=1e6, allow_nan=False)


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

"""A quantile is the smallest measured value that enough of the values do not exceed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.colo.checkpoint import CheckpointStats
from coloctl.model.figures import quantile, summary

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


def test_the_median_of_two_is_the_lesser_one_and_p99_of_a_hundred_the_99th() -> None:
    assert quantile([1.0, 2.0], 0.5) == 1.0
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([1.0, 2.0], 0) == 1.0


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_status_and_a_bench_agree_on_the_same_pauses(pauses_ms: list[int]) -> None:
    stats, now_s = CheckpointStats(), 0.0
    for pause_ms in pauses_ms:
        stats.stop(now_s)
        now_s += pause_ms / 1000
        stats.resume(now_s)
        now_s += 1.0
    view, figures = stats.view(500), summary(pauses_ms)
    assert view.pause_p50_ms == pytest.approx(figures["p50"], abs=0.01)
    assert view.pause_p99_ms == pytest.approx(figures["p99"], abs=0.01)


def test_a_summary_leaves_out_what_is_not_known() -> None:
    assert summary([None, 2.0, 1.0, None]) == {"n": 2, "p50": 1.0, "p99": 2.0, "max": 2.0}
    assert summary([]) == {"n": 0, "p50": None, "p99": None, "max": None}

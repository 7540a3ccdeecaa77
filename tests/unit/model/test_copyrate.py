"""The rate of a copy is that of its last seconds, and what is not known is not shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.model.copyrate import APART_S, LEAST_S, WINDOW_S, CopyRate

pytestmark = pytest.mark.unit

MB = 10**6


def test_a_steady_copy_has_its_rate_and_its_end() -> None:
    rate = CopyRate()
    for tick in range(400):
        rate.at(tick * 0.1, tick * 5 * MB)
    now = 39.9
    assert rate.bytes_per_s(now) == pytest.approx(50 * MB, rel=0.01)
    assert rate.left_s(now, 399 * 5 * MB + 500 * MB) == pytest.approx(10, rel=0.01)


def test_of_the_first_second_and_of_no_copy_nothing_is_known() -> None:
    rate = CopyRate()
    assert rate.bytes_per_s(5) is None and rate.left_s(5, MB) is None
    rate.at(5, 100 * MB)
    assert rate.bytes_per_s(5 + LEAST_S / 2) is None
    assert rate.bytes_per_s(5 + LEAST_S) == 0
    assert rate.left_s(5 + LEAST_S, 200 * MB) is None


def test_a_link_that_became_slow_shows_within_the_window_and_one_that_is_cut_shows_zero() -> None:
    rate = CopyRate()
    for tick in range(100):
        rate.at(tick, tick * 100 * MB)
    for tick in range(100, 112):
        rate.at(tick, 9900 * MB + (tick - 99) * MB)
    assert rate.bytes_per_s(111) == pytest.approx(MB, rel=0.01)
    assert rate.bytes_per_s(111 + 2 * WINDOW_S) == 0
    assert rate.left_s(111 + 2 * WINDOW_S, 20_000 * MB) is None


def test_another_copy_begins_from_its_own_beginning() -> None:
    rate = CopyRate()
    for tick in range(20):
        rate.at(tick, tick * 100 * MB)
    for tick in range(20, 25):
        rate.at(tick, (tick - 20) * MB)
    assert rate.bytes_per_s(24) == pytest.approx(MB)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 10 * MB)), max_size=300))
def test_few_reports_are_kept_and_no_figure_is_negative(reports: list[tuple[float, int]]) -> None:
    rate, now, done = CopyRate(), 0.0, 0
    for later, more in reports:
        now, done = now + later, done + more
        rate.at(now, done)
        assert len(rate._marks) <= WINDOW_S / APART_S + 2
        assert (rate.bytes_per_s(now) or 0) >= 0
        assert (rate.left_s(now, done + 1) or 0) >= 0

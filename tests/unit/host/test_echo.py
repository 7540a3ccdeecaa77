"""The round trip and the offset of another clock, from times that are sent back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.host.remote.echo import Echo

pytestmark = pytest.mark.unit

#: Another machine's clock may show anything: seconds since its own boot.
OFFSETS = st.floats(-1e7, 1e7)
SECONDS = st.floats(0.0, 5.0)


def exchange(
    echo: Echo, at_s: float, ways: tuple[float, float], offset: float, *, held_s: float = 0.0
) -> float:
    """Send a time at ``at_s`` and receive it again, after the times of both ways; returns now."""
    echo.send(at_s)
    there_s, back_s = ways
    left_s = at_s + there_s + held_s
    echo.receive({"t": left_s + offset, "echo": at_s, "held": held_s}, left_s + back_s)
    return left_s + back_s


@given(OFFSETS, SECONDS, SECONDS, SECONDS)
def test_the_offset_is_wrong_by_half_a_round_trip_at_most(
    offset: float, there_s: float, held_s: float, back_s: float
) -> None:
    echo = Echo()
    now_s = exchange(echo, 100.0, (there_s, back_s), offset, held_s=held_s)
    assert echo.round_trip_s == pytest.approx(there_s + back_s, abs=1e-6)
    event_s = 90.0  # a death that was noticed there
    assert abs(echo.ours(event_s + offset, now_s) - event_s) <= (there_s + back_s) / 2 + 1e-6


@given(OFFSETS, st.floats(0, 1e6))
def test_no_time_is_later_than_now(offset: float, ahead_s: float) -> None:
    echo = Echo()
    assert echo.ours(ahead_s, 5.0) == 5.0  # nothing was measured yet
    now_s = exchange(echo, 100.0, (0.1, 0.1), offset)
    assert echo.ours(now_s + offset + ahead_s, now_s) <= now_s


def test_a_quicker_echo_gives_a_better_offset_and_a_slow_one_does_not_spoil_it() -> None:
    echo = Echo()
    exchange(echo, 100.0, (1.0, 0.0), 50.0)
    exchange(echo, 102.0, (0.001, 0.001), 50.0)
    now_s = exchange(echo, 103.0, (0.0, 2.0), 50.0)
    assert echo.ours(140.0, now_s) == pytest.approx(90.0, abs=0.001)
    assert echo.round_trip_s == 2.0


def test_a_clock_that_drifts_is_measured_again() -> None:
    echo = Echo()
    exchange(echo, 100.0, (0.001, 0.001), 50.0)
    now_s = exchange(echo, 1100.0, (0.02, 0.02), 50.05)  # 50 parts in a million later
    assert echo.ours(1150.05, now_s) == pytest.approx(1100.0, abs=0.001)


def test_a_time_that_is_not_sent_back_counts_as_a_delay() -> None:
    echo = Echo()
    now_s = exchange(echo, 100.0, (0.01, 0.01), 0.0, held_s=0.5)
    assert echo.delay_s(now_s) == pytest.approx(0.02)
    echo.send(101.0)
    echo.send(102.0)
    assert echo.delay_s(103.5) == 2.5
    echo.receive({"t": 103.6, "echo": 102.0, "held": 1.5}, 103.6)
    assert echo.delay_s(103.7) == pytest.approx(0.1)


def test_a_damaged_echo_is_ignored() -> None:
    echo = Echo()
    echo.send(100.0)
    for document in ({}, {"t": "x"}, {"t": 1.0, "echo": None, "held": 0.0}):
        echo.receive(document, 101.0)
    assert (echo.round_trip_s, echo.ours(55.0, 101.0)) == (0.0, 101.0)

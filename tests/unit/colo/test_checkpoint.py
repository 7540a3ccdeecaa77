"""The stats counts what STOP and RESUME say, in whatever order they come."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.colo.checkpoint import WINDOW, CheckpointStats

pytestmark = pytest.mark.unit

#: Events with the time since the one before, seconds.
events = st.lists(
    st.tuples(st.sampled_from(["stop", "resume"]), st.floats(0, 10, allow_nan=False)), max_size=60
)


def played(history: list[tuple[str, float]]) -> tuple[CheckpointStats, list[float | None]]:
    stats, now, pauses = CheckpointStats(), 1000.0, []
    for name, after_s in history:
        now += after_s
        if name == "stop":
            stats.stop(now)
        else:
            pauses.append(stats.resume(now))
    return stats, pauses


@given(events)
def test_a_checkpoint_is_a_stop_with_the_resume_that_follows(
    history: list[tuple[str, float]],
) -> None:
    stats, pauses = played(history)
    names = [name for name, _ in history]
    pairs = sum(one == "stop" and two == "resume" for one, two in pairwise(names))
    assert stats.count == pairs == sum(pause is not None for pause in pauses)
    assert all(pause >= 0 for pause in pauses if pause is not None)


@given(events)
def test_a_pause_is_under_way_until_its_resume(history: list[tuple[str, float]]) -> None:
    stats, _ = played(history)
    assert (stats.stopped_at is not None) is bool(history and history[-1][0] == "stop")


@given(events)
def test_the_figures_are_those_of_the_checkpoints_seen(history: list[tuple[str, float]]) -> None:
    stats, pauses = played(history)
    view = stats.view(500)
    real = [pause for pause in pauses if pause is not None]
    assert (view.count, view.delay_ms) == (len(real), 500)
    if not real:
        assert (view.last_pause_ms, view.pause_p50_ms, view.pause_p99_ms) == (None, None, None)
        return
    assert view.last_pause_ms == round(real[-1] * 1000, 1)
    assert view.pause_p50_ms is not None
    assert view.pause_p99_ms is not None
    assert view.pause_p50_ms <= view.pause_p99_ms <= round(max(real) * 1000, 1)


@given(events)
def test_a_period_lies_between_two_stops(history: list[tuple[str, float]]) -> None:
    stats, _ = played(history)
    stops = sum(name == "stop" for name, _ in history)
    assert (stats.view(1).last_period_ms is not None) is (stops >= 2)


def test_figures_in_milliseconds() -> None:
    stats = CheckpointStats()
    for n in range(4):
        stats.stop(10.0 + n * 0.5)
        assert stats.resume(10.01 + n * 0.5) == pytest.approx(0.01)
    view = stats.view(500)
    assert (view.count, view.last_pause_ms, view.last_period_ms) == (4, 10.0, 500.0)


def test_a_resume_that_starts_colo_is_no_checkpoint() -> None:
    stats = CheckpointStats()
    assert stats.resume(1.0) is None
    assert stats.count == 0


def test_an_old_checkpoint_leaves_the_quantiles_but_not_the_count() -> None:
    stats = CheckpointStats()
    stats.stop(0.0)
    stats.resume(9.0)
    for n in range(WINDOW):
        stats.stop(10.0 + n)
        stats.resume(10.5 + n)
    view = stats.view(500)
    assert view.count == WINDOW + 1
    assert view.pause_p99_ms == 500.0

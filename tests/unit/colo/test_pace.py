"""The pace keeps its bounds whatever it is shown, and settles where nothing changes.

What it decided about real pairs it decides again: ``tests/golden/pace`` has their checkpoints, each
with the delay that was in force at its end. `coloctl bench pace` wrote them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.colo.pace import EARLY_ROW, GROWTH, PATIENCE_MAX, Budget, Pace
from coloctl.model.pair import CheckpointSpec

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[2] / "golden" / "pace"
DEFAULT = Budget.of(CheckpointSpec())
WAIT_MS = CheckpointSpec().compare_timeout_ms

pauses = st.floats(0.1, 5000, allow_nan=False)
budgets = st.builds(
    lambda low, more, share, held: Budget(low, low + more, share, held),
    st.integers(1, 5000),
    st.integers(0, 60_000),
    st.floats(0.001, 1),
    st.integers(1, 60_000),
)
checkpoints = st.lists(st.tuples(pauses, st.floats(0, 70_000, allow_nan=False)), max_size=80)

#: The pause of a checkpoint by its period, both in milliseconds.
Guest = Callable[[float], float]


def steady(pause_ms: float) -> Guest:
    return lambda _: pause_ms


def lived(
    pace: Pace, guest: Guest, forced_after_ms: float, rounds: int = 400
) -> tuple[list[int], Pace]:
    """The delay of each checkpoint of a pair whose answers force one after so long."""
    delays = []
    for _ in range(rounds):
        period_ms = min(float(pace.delay_ms), forced_after_ms)
        delays.append(pace.delay_ms)
        if pace.wanted_ms != pace.delay_ms:
            pace = pace.set()
        pace = pace.after(guest(period_ms), period_ms, WAIT_MS)
    return delays, pace


def changes(delays: list[int]) -> int:
    return sum(one != two for one, two in itertools.pairwise(delays))


@given(budgets, st.integers(1, 600_000), checkpoints)
def test_the_delay_stays_between_floor_and_ceiling(
    budget: Budget, delay_ms: int, history: list[tuple[float, float]]
) -> None:
    pace = Pace.begin(budget, delay_ms)
    for pause_ms, period_ms in history:
        assert budget.min_ms <= pace.delay_ms <= budget.max_ms
        pace = pace.after(pause_ms, period_ms, WAIT_MS)
        assert budget.min_ms <= pace.wanted_ms <= budget.max_ms
        assert pace.why.endswith(".")
        pace = pace.set() if pace.wanted_ms != pace.delay_ms else pace


@given(budgets, pauses, pauses)
def test_a_longer_pause_never_allows_a_shorter_delay(
    budget: Budget, one_ms: float, two_ms: float
) -> None:
    short_ms, long_ms = sorted((one_ms, two_ms))
    assert budget.floor_ms(short_ms) <= budget.floor_ms(long_ms)


@given(pauses, st.integers(100, 10_000))
def test_nothing_that_is_wanted_breaks_the_share_of_pauses(pause_ms: float, delay_ms: int) -> None:
    """Where the floor is above the delay by more than the slack, the floor is wanted."""
    pace = Pace.begin(DEFAULT, delay_ms).after(pause_ms, delay_ms, WAIT_MS)
    floor_ms = DEFAULT.floor_ms(pause_ms)
    assert pace.wanted_ms >= min(floor_ms, delay_ms)
    assert pace.wanted_ms * 1.25 >= floor_ms


@given(st.floats(0.1, 180), st.integers(100, 10_000))
def test_it_settles_where_answers_never_differ(pause_ms: float, delay_ms: int) -> None:
    delays, pace = lived(Pace.begin(DEFAULT, delay_ms), steady(pause_ms), float("inf"))
    assert changes(delays[-200:]) == 0
    if pause_ms * GROWTH < DEFAULT.held_ms:
        assert pace.delay_ms == DEFAULT.max_ms


@given(st.floats(0.1, 180), st.integers(100, 10_000))
def test_it_settles_where_answers_wait_in_every_period(pause_ms: float, delay_ms: int) -> None:
    """The delay is as short as the share of pauses allows, or shorter than the wait."""
    delays, _ = lived(Pace.begin(DEFAULT, delay_ms), steady(pause_ms), WAIT_MS)
    floor_ms = max(DEFAULT.floor_ms(pause_ms), DEFAULT.held_ms)
    assert min(delays[-100:]) <= 2 * max(WAIT_MS, floor_ms)
    assert changes(delays[-100:]) <= 12


@given(st.floats(0.1, 180), st.integers(100, 10_000), st.floats(1, WAIT_MS - 1))
def test_where_answers_differ_the_delay_does_not_matter(
    pause_ms: float, delay_ms: int, differs_after_ms: float
) -> None:
    """Such an answer takes a checkpoint at once. No shorter delay would spare its client any."""
    delays, pace = lived(Pace.begin(DEFAULT, delay_ms), steady(pause_ms), differs_after_ms)
    assert pace.delay_ms >= min(delay_ms, WAIT_MS)
    assert changes(delays[-200:]) == 0


@given(st.floats(0.1, 100), st.integers(100, 10_000), st.floats(300, 9000))
def test_it_seldom_tries_again_what_went_wrong(
    pause_ms: float, delay_ms: int, waits_after_ms: float
) -> None:
    """One attempt in `PATIENCE_MAX` checkpoints, and the way back up from it."""
    begun = Pace.begin(DEFAULT, delay_ms)
    delays, _ = lived(begun, steady(pause_ms), waits_after_ms, rounds=900)
    attempts = math.ceil(300 / PATIENCE_MAX)
    steps_up = math.log(DEFAULT.max_ms / DEFAULT.held_ms, GROWTH)
    assert changes(delays[-300:]) <= attempts * (steps_up + 2)


def test_a_single_early_checkpoint_changes_nothing() -> None:
    pace = Pace.begin(DEFAULT, 2000).after(10, 310, WAIT_MS)
    assert pace.wanted_ms == 2000
    for _ in range(EARLY_ROW - 1):
        pace = pace.after(10, 310, WAIT_MS)
    assert pace.wanted_ms == DEFAULT.held_ms == DEFAULT.floor_ms(10)


def test_a_guest_that_writes_much_is_not_let_stand_ever_longer() -> None:
    """Pauses that grow with the delay: a tenth of it. The budgets meet at 4 s."""
    delays, pace = lived(Pace.begin(DEFAULT, 1000), lambda period_ms: period_ms / 10, float("inf"))
    assert pace.delay_ms <= DEFAULT.held_ms / DEFAULT.pause_share
    assert changes(delays[-200:]) == 0


def test_the_checkpoint_that_took_the_change_says_nothing_of_it() -> None:
    pace = Pace.begin(DEFAULT, 1000).after(10, 1000, WAIT_MS).after(10, 1000, WAIT_MS)
    assert pace.wanted_ms == 2000
    changed = pace.set()
    assert (changed.delay_ms, changed.after(10, 1000, WAIT_MS).early) == (2000, 0)


def test_another_session_begins_where_the_last_one_ended() -> None:
    pace = Pace.begin(DEFAULT, 1000).after(10, 310, WAIT_MS).after(10, 310, WAIT_MS).set().anew()
    assert (pace.delay_ms, pace.pauses_ms, pace.early) == (DEFAULT.held_ms, (), 0)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_what_was_decided_about_a_real_pair_is_decided_again(path: Path) -> None:
    trace = json.loads(path.read_text())
    first = trace["checkpoints"][0]["delay_ms"]
    pace, decided = Pace.begin(DEFAULT, first), []
    for one in trace["checkpoints"]:
        if one["delay_ms"] != pace.delay_ms:
            assert pace.wanted_ms == one["delay_ms"], trace["what"]
            pace = pace.set()
            decided.append(pace.delay_ms)
        pace = pace.after(one["pause_ms"], one["period_ms"], WAIT_MS)
    assert decided == trace["decided"]


def test_there_are_traces_of_real_pairs() -> None:
    wanted = {"idle", "bursty", "saturated", "differing"}
    assert {path.stem for path in GOLDEN.glob("*.json")} >= wanted

"""The fate of frames on an impaired wire: what is lost, late, out of order, too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.errors import LabError
from coloctl.lab.impairment import BACKLOG_BYTES, Impairment, WireDirection

pytestmark = pytest.mark.unit


def lane(impairment: Impairment, name: str = "0") -> WireDirection:
    return WireDirection(impairment, name, 0.0)


def fates(impairment: Impairment, frames: int, name: str = "0") -> list[float | None]:
    one = lane(impairment, name)
    return [one.due(number / 1000, 1000, 0) for number in range(frames)]


def test_a_wire_without_a_fault_sends_at_once() -> None:
    assert fates(Impairment(), 3) == [0.0, 0.001, 0.002]


def test_a_delay_is_added_to_each_frame() -> None:
    assert fates(Impairment(delay_ms=20), 3) == pytest.approx([0.020, 0.021, 0.022])


@given(
    seed=st.integers(0, 1000),
    jitter=st.floats(0, 20),
    gaps=st.lists(st.floats(0, 0.01), max_size=40),
)
def test_jitter_stays_in_its_bounds_and_keeps_the_order(
    seed: int, jitter: float, gaps: list[float]
) -> None:
    one, now_s, last_s = lane(Impairment(delay_ms=20, jitter_ms=jitter, seed=seed)), 0.0, 0.0
    for gap in gaps:
        now_s += gap
        due_s = one.due(now_s, 100, 0)
        assert due_s is not None and due_s >= last_s
        assert due_s <= max(last_s, now_s + (20 + jitter) / 1000 + 1e-9)
        assert due_s >= now_s + (20 - jitter) / 1000 - 1e-9
        last_s = due_s


def test_as_many_are_lost_as_was_asked_for() -> None:
    lost = fates(Impairment(loss_percent=10), 5000).count(None)
    assert 400 < lost < 600
    assert fates(Impairment(loss_percent=100), 10) == [None] * 10


def test_frames_that_overtake_leave_at_once() -> None:
    dues = fates(Impairment(delay_ms=5, reorder_percent=20), 1000)
    overtaking = sum(due == number / 1000 for number, due in enumerate(dues))
    assert 120 < overtaking < 280


def test_a_rate_is_never_exceeded_and_what_is_too_much_is_lost() -> None:
    one = lane(Impairment(rate_kbit=8000))  # a megabyte a second
    dues = [one.due(0.0, 1000, waiting=number * 1000) for number in range(1000)]
    sent = [due for due in dues if due is not None]
    assert sent == pytest.approx([(number + 1) / 1000 for number in range(len(sent))])
    assert len(sent) == one.limit // 1000 == 200


def test_what_waits_is_bounded_without_a_rate_too() -> None:
    one = lane(Impairment(delay_ms=1000))
    assert one.due(0.0, 1000, BACKLOG_BYTES - 1000) is not None
    assert one.due(0.0, 1000, BACKLOG_BYTES) is None


def test_a_wire_that_flaps_begins_up_and_carries_in_turns() -> None:
    one = lane(Impairment(up_s=1, down_s=2))
    assert [one.is_down(at_s) for at_s in (0.0, 0.9, 1.0, 2.9, 3.1, 4.5)] == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]
    assert one.due(1.5, 100, 0) is None and one.due(3.5, 100, 0) == 3.5


def test_the_seed_decides_and_each_direction_has_a_chance_of_its_own() -> None:
    wire = Impairment(loss_percent=30, delay_ms=9, jitter_ms=4, reorder_percent=5, seed=7)
    again = Impairment(**wire.document())
    assert fates(wire, 200) == fates(again, 200)
    assert fates(wire, 200) != fates(wire, 200, "1")
    other = Impairment(**{**wire.document(), "seed": 8})
    assert fates(wire, 200) != fates(other, 200)


@pytest.mark.parametrize(
    "values",
    [
        {"loss_percent": 101},
        {"delay_ms": -1},
        {"jitter_ms": 1},
        {"reorder_percent": 1},
        {"up_s": 1},
        {"down_s": 1},
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(LabError):
        Impairment(**values)


def test_netem_gets_microseconds_and_is_not_asked_for_what_it_cannot_do() -> None:
    wire = Impairment(loss_percent=1, delay_ms=20, jitter_ms=5, reorder_percent=25)
    assert wire.netem() == {
        "limit": 10_000,
        "loss": 1,
        "delay": 20_000,
        "jitter": 5_000,
        "prob_reorder": 25,
    }
    assert Impairment(up_s=1, down_s=1).netem() is None
    assert Impairment(rate_kbit=1).netem() is None

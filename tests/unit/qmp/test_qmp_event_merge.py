"""Two roads that tell the same: each event is told on once and in order, whichever road hangs."""

from __future__ import annotations

import pytest
from fake_qmp import FakeQMP, open_monitor
from hypothesis import given
from hypothesis import strategies as st

from coloctl.colo.checkpoint import CheckpointStats
from coloctl.qmp import command as qmp
from coloctl.qmp.client import Event
from coloctl.qmp.event_merge import EventMerger

pytestmark = pytest.mark.unit


def events(number: int) -> list[Event]:
    """STOP and RESUME by turns, as checkpoints make them."""
    return [Event(("STOP", "RESUME")[n % 2], {}, 1000.0 + n, 0.0) for n in range(number)]


def listen(bound: int = 1000) -> tuple[EventMerger, list[Event]]:
    told: list[Event] = []
    return EventMerger(told.append, leading="command", following="rescue", bound=bound), told


def in_step(bound: int = 1000) -> tuple[EventMerger, list[Event]]:
    """Both roads have told one event by now."""
    unison, told = listen(bound)
    for road in ("command", "rescue"):
        unison.hear(road, Event("RESUME", {}, 999.0, 0.0))
    told.clear()
    return unison, told


@given(
    st.integers(0, 20),
    st.integers(0, 20),
    st.lists(st.sampled_from(["command", "rescue"]), max_size=60),
)
def test_whatever_the_order_each_event_is_told_once_and_in_order(
    total: int, missed: int, turns: list[str]
) -> None:
    """The rescue road was opened after the first ``missed`` events."""
    unison, told = listen()
    sent = events(total)
    left = {"command": sent[:], "rescue": sent[missed:]}
    for road in (*turns, *["command"] * total, *["rescue"] * total):
        if left[road]:
            unison.hear(road, left[road].pop(0))
            assert told == sent[: len(told)]
            assert len(told) >= total - len(left["command"])
    assert told == sent


@pytest.mark.parametrize("silent", ["command", "rescue"])
@pytest.mark.parametrize("before", range(4))
def test_a_road_that_hangs_costs_no_event_and_none_is_told_again(silent: str, before: int) -> None:
    unison, told = in_step()
    sent, speaking = events(12), {"command": "rescue", "rescue": "command"}[silent]
    for number, event in enumerate(sent):
        if number < before:
            unison.hear(silent, event)
        unison.hear(speaking, event)
        assert told == sent[: number + 1]
    for event in sent[before:]:
        unison.hear(silent, event)
    assert told == sent


def test_two_events_of_one_moment_are_two() -> None:
    unison, told = in_step()
    sent = [Event("BLOCK_IO_ERROR", {"node-name": name}, 1000.0, 0.0) for name in "xyy"]
    for event in sent:
        unison.hear("rescue", event)
    for event in sent:
        unison.hear("command", event)
    assert told == sent


def test_a_clock_that_is_set_back_is_no_reason_to_forget() -> None:
    unison, told = in_step()
    sent = [Event("STOP", {}, at_s, 0.0) for at_s in (1000.0, 5.0, 1001.0)]
    for road in ("rescue", "command"):
        for event in sent:
            unison.hear(road, event)
    assert told == sent


@pytest.mark.parametrize("silent", ["command", "rescue"])
def test_a_road_that_is_too_far_behind_is_not_believed_until_it_has_caught_up(silent: str) -> None:
    unison, told = in_step(bound=10)
    sent, speaking = events(50), {"command": "rescue", "rescue": "command"}[silent]
    for event in sent:
        unison.hear(speaking, event)
    for event in sent:
        unison.hear(silent, event)
    assert told == sent
    more = [Event("STOP", {}, 2000.0 + n, 0.0) for n in range(3)]
    for event in more:
        unison.hear(silent, event)
    assert told == [*sent, *more]


def test_an_event_that_one_road_never_told_does_not_put_them_out_of_step() -> None:
    unison, told = in_step()
    sent = events(6)
    for event in sent:
        unison.hear("rescue", event)
    for event in [*sent[:2], *sent[3:]]:
        unison.hear("command", event)
    last = Event("STOP", {}, 2000.0, 0.0)
    unison.hear("command", last)
    assert told == [*sent, last]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_checkpoint_ends_on_the_rescue_road_while_commands_hang(ends: bool) -> None:
    """And one that really does not end goes on being none that has ended."""

    stats = CheckpointStats()
    async with (
        FakeQMP() as command,
        FakeQMP() as rescue,
        await open_monitor(command, rescue) as monitor,
    ):
        with monitor.listen("STOP", "RESUME") as stream:
            for road in (command, rescue):
                road.event("RESUME", at=999.0)
            assert (await stream.next(5)).name == "RESUME"
            await monitor.rescue(qmp.query_yank(), 5)
            command.event("STOP", at=1000.0)
            stats.stop((await stream.next(5)).at_s)
            rescue.event("STOP", at=1000.0)
            if ends:
                rescue.event("RESUME", at=1000.5)
                assert stats.resume((await stream.next(5)).at_s) == 0.5
            command.event("STOP", at=2000.0)
            assert (await stream.next(5)).at_s == 2000.0
    assert (stats.stopped_at is None) is ends

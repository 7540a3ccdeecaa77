"""The flight recorder keeps what matters, within its bounds, and never a secret."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest

from coloctl.supervisor.recorder import MESSAGE_MAX, OPEN_MAX, FlightRecorder

pytestmark = pytest.mark.unit


def recorder(**bounds: int) -> FlightRecorder:
    ticks = itertools.count(1)
    return FlightRecorder(wall=lambda: float(next(ticks)), **bounds)


def told(recorder: FlightRecorder) -> list[tuple[str, Mapping[str, Any]]]:
    return [(line["what"], line["message"]) for line in recorder.lines() if "message" in line]


def test_what_was_said_is_kept_in_order() -> None:
    flight = recorder()
    flight.record("command sent", {"execute": "stop", "id": 1})
    flight.record("command received", {"event": "STOP", "data": {}})
    flight.record("command received", {"return": {}, "id": 1})
    assert told(flight) == [
        ("command sent", {"execute": "stop", "id": 1}),
        ("command received", {"event": "STOP", "data": {}}),
        ("command received", {"return": {}, "id": 1}),
    ]
    assert [line["at_s"] for line in flight.lines()[1:]] == [1.0, 2.0, 3.0]


def test_answered_probes_are_counted_with_their_last_answer() -> None:
    flight = recorder()
    for number in range(1000):
        flight.record("rescue sent", {"exec-oob": "query-yank", "id": number})
        flight.record("rescue received", {"return": [number], "id": number})
    dropped, counted = flight.lines()
    assert dropped == {"what": "dropped", "count": 0}
    assert (counted["command"], counted["count"]) == ("query-yank", 1000)
    assert counted["message"]["return"] == [999]


def test_probes_that_failed_or_wait_are_told() -> None:
    flight = recorder()
    flight.record("command sent", {"execute": "query-status", "id": 1})
    flight.record("command received", {"error": {"class": "GenericError"}, "id": 1})
    flight.record("rescue sent", {"exec-oob": "query-yank", "id": 1})
    flight.record("command sent", {"execute": "query-status", "id": 2})
    flight.record("command abandoned", {"execute": "query-status", "deadline_s": 1.0})
    flight.record("command received", {"return": {}, "id": 2})  # too late
    assert [(line["what"], "unanswered" in line) for line in flight.lines()[1:]] == [
        ("command sent", False),
        ("command received", False),
        ("command sent", False),
        ("command abandoned", False),
        ("command received", False),
        ("rescue sent", True),
    ]


def test_the_same_number_on_the_other_road_is_another_command() -> None:
    flight = recorder()
    flight.record("rescue sent", {"exec-oob": "query-yank", "id": 7})
    flight.record("command received", {"return": {}, "id": 7})
    assert [what for what, _ in told(flight)] == ["command received", "rescue sent"]


def test_number_and_bytes_are_bounded_and_what_is_lost_is_counted() -> None:
    few = recorder(messages_max=10)
    for number in range(25):
        few.record("command received", {"event": "STOP", "data": {"n": number}})
    assert [message["data"]["n"] for _, message in told(few)] == list(range(15, 25))
    assert few.lines()[0]["count"] == few.dropped == 15

    small = recorder(bytes_max=4096)
    for _ in range(100):
        small.record("command received", {"event": "X", "data": {"text": "y" * 500}})
    assert 0 < len(json.dumps(told(small))) < 4096
    assert small.dropped + len(told(small)) == 100


def test_a_long_message_is_cut_and_says_how_long_it_was() -> None:
    flight = recorder()
    flight.record("command received", {"return": "z" * (3 * MESSAGE_MAX)})
    ((_, message),) = told(flight)
    assert len(message["cut"]) == MESSAGE_MAX
    assert message["characters"] > 3 * MESSAGE_MAX


def test_a_monitor_that_never_answers_costs_no_more_than_its_bound() -> None:
    flight = recorder(messages_max=50)
    for number in range(10 * OPEN_MAX):
        flight.record("rescue sent", {"exec-oob": "query-yank", "id": number})
    assert len(told(flight)) == 50 + OPEN_MAX


def test_no_secret_is_kept_and_nothing_makes_it_raise() -> None:
    flight = recorder()
    data = {"qom-type": "secret", "id": "sec0", "data": "hunter2"}
    flight.record("command sent", {"execute": "object-add", "arguments": data, "id": 1})
    flight.record("command received", {"return": {1: object()}, "id": [2]})
    assert "hunter2" not in json.dumps(flight.lines())
    assert len(told(flight)) == 2

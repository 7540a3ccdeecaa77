"""How a failover is timed, whose frames are whose, and what a stretch is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.views import PROTECTED

from coloctl.bench.stretches import Stretch, change, checkpoints, pauses, rates, ratio
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.evidence.records import FrameRun, ObservedEvent
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.model.view import CheckpointView

pytestmark = pytest.mark.unit

TIMELINE = {
    "generation": 2,
    "cause": "primary-dead",
    "survivor": "b",
    "lost": "a",
    "role_before": "secondary",
    "began_s": 100.010,
    "steps": {"detected": 0.0, "fenced": 1.0, "running": 5.0, "promoted": 4.0},
}


def test_a_failover_is_timed_from_the_fault() -> None:
    takeover = Timeline.from_json(TIMELINE)
    assert list(takeover.since_ms(100.0)) == ["detected", "fenced", "promoted", "running"]
    assert takeover.since_ms(100.0)["running"] == pytest.approx(15.0)
    assert takeover.done_s(FailoverStep.FENCED) == pytest.approx(100.011)


def test_a_frame_of_a_fenced_node_is_a_stray() -> None:
    before = (FrameRun("a", 1.0, 2.0, 50), FrameRun("b", 2.5, 4.0, 30))
    heard = Chronicle(frames=before)
    assert heard.frames_after("a", 2.2) == 0
    stray = Chronicle(frames=(*before, FrameRun("a", 4.1, 4.2, 2)))
    assert stray.frames_after("a", 2.2) == 2
    assert heard.first_frame_s("b", 2.1) == 2.5
    assert heard.first_frame_s("a", 2.1) is None


# -- stretches


def test_latency_is_counted_where_the_reply_came_in_time() -> None:
    history = [
        Op(0.0, 0, OpStatus.INVOKE, 0),
        Op(0.9, 0, OpStatus.OK, 0),  # too early
        Op(1.0, 0, OpStatus.INVOKE, 1),
        Op(1.5, 1, OpStatus.INVOKE, 1),
        Op(1.2, 0, OpStatus.OK, 1),
        Op(1.9, 1, OpStatus.OK, 1),
        Op(2.0, 1, OpStatus.INFO, -1, "closed 7"),
        Op(2.0, 0, OpStatus.INVOKE, 2),  # never answered
    ]
    found = rates(history, Stretch(1.0, 3.0))
    assert found["replies_per_s"] == 1.0
    assert found["latency_ms"] == {"n": 2, "p50": 200.0, "p99": 400.0, "max": 400.0}


def test_pauses_are_a_share_of_the_time() -> None:
    assert pauses([100.0, 300.0], Stretch(1.0, 5.0))["paused_percent"] == 10.0
    assert pauses([], Stretch(1.0, 5.0))["paused_percent"] == 0.0


def test_a_ratio_needs_something_to_compare_with() -> None:
    assert ratio({"replies_per_s": 50.0}, {"replies_per_s": 200.0}) == 0.25
    assert ratio({"replies_per_s": 50.0}, {"replies_per_s": 0.0}) is None


def qemu_said(event: str, at_s: float, node: str = "a") -> ObservedEvent:
    data = {"node": node, "event": event, "data": {}, "timestamp": 1000 + at_s}
    return ObservedEvent(at_s, "NODE_EVENT", data)


def test_checkpoints_are_taken_down_with_the_delay_that_was_in_force() -> None:
    pair = replace(PROTECTED, checkpoints=CheckpointView(delay_ms=1000))
    changed = {"before_ms": 1000, "after_ms": 2000, "why": "so"}
    events = (
        qemu_said("RESUME", 0.5),  # of a checkpoint that began before
        qemu_said("STOP", 1.0),
        qemu_said("STOP", 1.001, "b"),
        qemu_said("RESUME", 1.01),
        qemu_said("STOP", 2.0),
        ObservedEvent(2.0, "PACE_CHANGED", changed),
        qemu_said("RESUME", 2.02),
    )
    assert change(events[-2]) == {"before-ms": 1000, "after-ms": 2000, "why": "so"}
    assert list(checkpoints(events, pair)) == [
        (2.02, {"delay_ms": 2000, "pause_ms": 20.0, "period_ms": 1000.0}),
    ]

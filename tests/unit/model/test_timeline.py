"""A timeline reads back what it wrote, also what another version of coloctl wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.model.pair import FencingMethod, Role
from coloctl.model.timeline import (
    POINT_OF_NO_RETURN,
    TIMELINE_STEPS,
    FailoverStep,
    FenceRecord,
    Timeline,
)

pytestmark = pytest.mark.unit

MILLISECONDS = st.floats(0, 1e6, allow_nan=False)
TIMELINES = st.builds(
    Timeline,
    survivor=st.sampled_from(["a", "b"]),
    lost=st.sampled_from(["a", "b"]),
    role_before=st.sampled_from(Role),
    steps=st.dictionaries(st.sampled_from(TIMELINE_STEPS), MILLISECONDS),
    began_s=MILLISECONDS,
    at=st.text(max_size=9),
    generation=st.integers(0, 99),
    cause=st.text(max_size=9),
    fault_ms=st.none() | MILLISECONDS,
    failed=st.text(max_size=9),
    point_of_no_return=st.sampled_from(TIMELINE_STEPS),
    fence=st.none()
    | st.builds(
        FenceRecord,
        node=st.sampled_from(["a", "b"]),
        method=st.sampled_from([str(method) for method in FencingMethod]),
        how=st.text(max_size=9),
        ms=st.none() | MILLISECONDS,
        pid=st.none() | st.integers(1, 99),
        said=st.text(max_size=9),
        failed=st.text(max_size=9),
    ),
)


@given(TIMELINES)
def test_a_timeline_reads_back_through_json(timeline: Timeline) -> None:
    assert Timeline.from_json(json.loads(json.dumps(timeline.to_json()))) == timeline


def test_only_a_failed_one_says_that_it_failed() -> None:
    assert "failed" not in Timeline("b", "a", Role.SECONDARY).to_json()
    assert Timeline("b", "a", Role.SECONDARY, failed="No.").to_json()["failed"] == "No."


def test_a_fence_has_only_what_there_is_to_say() -> None:
    proven = FenceRecord("a", "kill", "reaped", 3.2, 7)
    document = {"node": "a", "method": "kill", "how": "reaped", "ms": 3.2, "pid": 7}
    assert proven.to_json() == document
    assert Timeline("b", "a", fence=proven).to_json()["fence"] == document
    failed = FenceRecord("a", "command", failed="No.")
    assert failed.to_json() == {"node": "a", "method": "command", "failed": "No."}
    assert "fence" not in Timeline("b", "a").to_json()


def test_it_reads_what_other_versions_wrote() -> None:
    """An earlier failure had neither role nor begin; a later one may have steps unknown today."""
    earlier = {"generation": 3, "survivor": "b", "lost": "a", "at": "", "failed": "No."}
    assert Timeline.from_json(earlier).role_before is Role.NONE
    later = Timeline.from_json({**earlier, "steps": {"blessed": 4.0}, "colour": "red"})
    assert later.steps == {"blessed": 4.0}


@pytest.mark.parametrize(
    "damaged",
    [{}, {"survivor": "b"}, {"survivor": "b", "lost": "a", "role_before": "king"},
     {"survivor": "b", "lost": "a", "steps": 3}],
)  # fmt: skip
def test_what_is_no_timeline_is_refused(damaged: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Timeline.from_json(damaged)


def test_the_times_of_the_steps_count_from_the_fault() -> None:
    timeline = Timeline(
        "b", "a", Role.SECONDARY, {"detected": 0.0, "running": 5.0, "promoted": 4.0}, began_s=100.01
    )
    since = timeline.since_ms(100.0)
    assert list(since) == ["detected", "promoted", "running"]
    assert since["running"] == pytest.approx(15.0)
    assert timeline.done_s(FailoverStep.PROMOTED) == pytest.approx(100.014)
    assert timeline.done_s(FailoverStep.MERGED) == pytest.approx(100.01)  # not in it


def test_every_step_has_a_meaning_and_a_place() -> None:
    assert all(step.meaning for step in FailoverStep)
    assert set(FailoverStep) - set(TIMELINE_STEPS) == {FailoverStep.CONFIRMATION_AWAITED}
    assert POINT_OF_NO_RETURN in TIMELINE_STEPS

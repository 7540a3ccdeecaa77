"""Answers of a supervisor are read back as they were made, also those of an earlier one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coloctl.control.acts import read
from coloctl.errors import PreconditionFailed
from coloctl.model.answers import (
    Change,
    CheckpointTaken,
    PastFailovers,
    PauseAnswer,
    SettingsChanged,
)
from coloctl.model.pair import CheckpointMode, Role
from coloctl.model.timeline import FenceRecord, Timeline

pytestmark = pytest.mark.unit

CHANGES = (
    Change("checkpoint-mode", CheckpointMode.FIXED, CheckpointMode.ADAPTIVE),
    Change("max-queue-size", 1024, 5),
)


@pytest.mark.parametrize(
    "answer",
    [
        SettingsChanged(CHANGES),
        CheckpointTaken(7, 1.5),
        CheckpointTaken(7, None),
        PauseAnswer(paused=True, before=False),
        Timeline("b", "a", Role.SECONDARY, {"fenced": 4.0}, fence=FenceRecord("a", "kill")),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_an_answer_is_read_back(answer: Any) -> None:
    document = json.loads(json.dumps(answer.to_json()))
    assert read(type(answer), document) == answer
    assert read(type(answer), {**document, "colour": "red"}) == answer


def test_the_answer_about_settings_has_the_first_one_twice() -> None:
    assert SettingsChanged(CHANGES).to_json() == {
        "name": "checkpoint-mode", "before": "fixed", "after": "adaptive",
        "changed": [
            {"name": "checkpoint-mode", "before": "fixed", "after": "adaptive"},
            {"name": "max-queue-size", "before": 1024, "after": 5},
        ],
    }  # fmt: skip


def test_keys_of_an_earlier_supervisor_have_dashes() -> None:
    assert read(CheckpointTaken, {"count": 7, "pause-ms": 2}) == CheckpointTaken(7, 2.0)


def test_an_answer_that_this_version_does_not_know_is_a_sentence() -> None:
    with pytest.raises(PreconditionFailed, match="answer cannot be read: count is 'many'") as found:
        read(CheckpointTaken, {"count": "many", "pause_ms": 1.0})
    assert "use the coloctl that runs its supervisor" in str(found.value.hint)


def test_a_line_of_the_history_that_is_no_failover_is_counted() -> None:
    done, failed = Timeline("b", "a", generation=3), Timeline("a", "b", failed="No.")
    earlier = {"survivor": "a", "lost": "b", "at": "", "failed": "No."}
    unknown = {"survivor": "c", "lost": "a"}
    document = {"failovers": [done.to_json(), unknown, earlier, {}], "unreadable": 1}
    assert PastFailovers.from_json(document) == PastFailovers((done, failed), 3)

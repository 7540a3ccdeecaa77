"""Every event of a supervisor reads back as the value that was sent, whoever wrote it."""

from __future__ import annotations

import ast
import json

import pytest
from pydantic import TypeAdapter
from support import house

from coloctl.model import pairevent
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import Role
from coloctl.model.pairevent import (
    EVENTS,
    CheckpointPhase,
    ClientDropped,
    DiagnosisChanged,
    FailedOver,
    NodeDead,
    NodeEvent,
    PaceChanged,
    PairEvent,
    PauseChanged,
    ProgressMade,
    StateChanged,
    StepReached,
    VerificationOver,
)
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.model.verified import DiskVerified, MemoryVerified, Verified, VerifyOutcome

pytestmark = pytest.mark.unit

REPORT = Verified(
    at="2026-11-29T08:00:00+00:00",
    outcome=VerifyOutcome.DIFFERENT,
    took_s=1.5,
    ended_s=100.0,
    primary="a",
    secondary="b",
    disks=(DiskVerified("root", 1 << 20, 1 << 16, differs=((0, 65536),)),),
    pages=MemoryVerified("pc.ram", 10, 8, 1, 1, places=((4096, 8192),)),
)
TIMELINE = Timeline("b", "a", Role.SECONDARY, {FailoverStep.FIRST_PACKET: 14.0}, 100.0)
SAMPLES: tuple[PairEvent, ...] = (
    StateChanged(
        before=Protection.COLO, fact=Fact.NODE_LOST, after=Protection.FAILOVER, reason="Lost."
    ),
    CheckpointPhase(node="a", phase="end", count=3, pause_ms=9.5),
    NodeEvent(node="a", event="STOP", data={"node-name": "nbd0"}, timestamp=1.5),
    NodeDead(node="b", how="killed by signal 9"),
    DiagnosisChanged(diagnosis=Diagnosis.PRIMARY_DEAD, evidence="It is gone.", node="a"),
    StepReached(act="failover", step="first-packet", at_ms=14.25, limit_s=2.5),
    ProgressMade(act="start", step="mirror", done=1, total=2),
    FailedOver(timeline=TIMELINE),
    VerificationOver(outcome=VerifyOutcome.DIFFERENT, report=REPORT),
    PauseChanged(paused=True),
    PaceChanged(before_ms=200, after_ms=400, why="The guest is idle."),
    ClientDropped(reason="It left 1000 messages unread."),
)


def test_every_event_has_a_sample() -> None:
    assert [type(one) for one in SAMPLES] == list(EVENTS.values())


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.NAME)
def test_an_event_reads_back_as_what_was_sent(event: PairEvent) -> None:
    sent = json.loads(json.dumps(event.to_json(), allow_nan=False))
    assert pairevent.read(event.NAME, sent) == event


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.NAME)
@pytest.mark.parametrize(("old", "new"), [("_", "-"), ("-", "_")])
def test_members_with_dashes_read_the_same(event: PairEvent, old: str, new: str) -> None:
    """Earlier supervisors wrote ``at-ms`` and the like; QEMU's own members keep their dashes."""
    sent = {name.replace(old, new): value for name, value in event.to_json().items()}
    assert pairevent.read(event.NAME, sent) == event


def test_what_is_absent_is_none_and_is_not_sent() -> None:
    begun = CheckpointPhase(node="a", phase="begin", count=3)
    assert begun.to_json() == {"node": "a", "phase": "begin", "count": 3}
    assert pairevent.read("CHECKPOINT", begun.to_json()) == begun


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("NEWS", {"x": 1}),
        ("PAUSE_CHANGED", {}),
        ("DIAGNOSIS", {"diagnosis": "bewitched", "evidence": "It hovers."}),
        ("VERIFIED", {"outcome": "equal", "report": {}}),
    ],
)
def test_an_event_that_is_not_understood_is_none(name: str, data: dict[str, object]) -> None:
    """A newer supervisor may send events and values that this version does not know."""
    assert pairevent.read(name, data) is None


def test_members_that_a_newer_supervisor_adds_are_left_out() -> None:
    assert pairevent.read("NODE_DEAD", {"node": "a", "how": "x", "since": 1}) == NodeDead(
        node="a", how="x"
    )


def test_events_are_emitted_as_values(product: house.Tree) -> None:
    """No module sends an event by its name with a dictionary beside it."""
    by_name = [
        f"{name}:{node.lineno}"
        for name, module in product.items()
        for node in module.nodes
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "emit"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    assert not by_name


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.NAME)
def test_what_is_sent_fits_the_published_schema(event: PairEvent) -> None:
    sent = json.dumps(event.to_json(), allow_nan=False)
    assert TypeAdapter(type(event)).validate_json(sent, strict=True) == event

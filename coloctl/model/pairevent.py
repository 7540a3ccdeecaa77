"""Events of a pair's supervisor, as values: what its control socket sends to every client.

`supervisor/` makes them, `control.server` sends them, and `control.client` reads them back.

Invariant: a name and its members are written here and nowhere else. `control.schema` publishes
them, mypy checks who makes one, and a reader asks for attributes instead of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Literal

from coloctl.model.observation import Diagnosis
from coloctl.model.pair import NodeName
from coloctl.model.protection import Fact, Protection
from coloctl.model.revive import revive
from coloctl.model.timeline import Timeline
from coloctl.model.verified import Verified, VerifyOutcome


@dataclass(frozen=True, kw_only=True)
class PairEvent:
    """An event that a supervisor sends to every client of its control socket.

    Note the difference: `qmp.event.Event` is what a QEMU sends to its supervisor; a `NodeEvent`
    passes one of those on. A `model.event.Record` is a line of the journal.
    """

    NAME: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Return the event's data for the wire; a member that is None is left out."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, (Verified, Timeline)):
        return value.to_json()
    return dict(value) if isinstance(value, Mapping) else value


@dataclass(frozen=True, kw_only=True)
class StateChanged(PairEvent):
    """The protection of the pair changed."""

    NAME = "STATE_CHANGED"
    before: Protection
    """the state that was left"""
    fact: Fact | Literal[""]
    """what happened"""
    after: Protection
    """the state now"""
    reason: str
    """why, in a sentence"""


@dataclass(frozen=True, kw_only=True)
class CheckpointPhase(PairEvent):
    """A checkpoint began (the guest is paused) or ended (it runs again)."""

    NAME = "CHECKPOINT"
    node: NodeName
    """the primary"""
    phase: Literal["begin", "end"]
    """begin or end"""
    count: int
    """checkpoints since the pair entered COLO"""
    pause_ms: float | None = None
    """how long the guest was paused, at the end"""


@dataclass(frozen=True, kw_only=True)
class NodeEvent(PairEvent):
    """The QEMU of a node sent an event."""

    NAME = "NODE_EVENT"
    node: NodeName
    """the node"""
    event: str
    """the name of the event, as in QEMU's schema"""
    data: Mapping[str, Any]
    """its data, as in QEMU's schema"""
    timestamp: float
    """seconds since the epoch, by QEMU's clock"""


@dataclass(frozen=True, kw_only=True)
class NodeDead(PairEvent):
    """The QEMU process of a node is gone."""

    NAME = "NODE_DEAD"
    node: NodeName
    """the node"""
    how: str
    """exit code or signal, as text for people"""


@dataclass(frozen=True, kw_only=True)
class DiagnosisChanged(PairEvent):
    """The diagnosis of the pair is another one than before."""

    NAME = "DIAGNOSIS"
    diagnosis: Diagnosis
    """its name; healthy when nothing is wrong any more"""
    evidence: str
    """what it rests on, in sentences"""
    node: NodeName | None = None
    """the node that it is about, if it is about one"""


@dataclass(frozen=True, kw_only=True)
class StepReached(PairEvent):
    """An act has reached one of its steps."""

    NAME = "STEP"
    act: str
    """the act, such as failover"""
    step: str
    """the step, such as fenced"""
    at_ms: float | None = None
    """milliseconds since the act began, where measured"""
    limit_s: float | None = None
    """how much longer the step may take, seconds"""


@dataclass(frozen=True, kw_only=True)
class ProgressMade(PairEvent):
    """An act moved on within a long step."""

    NAME = "PROGRESS"
    act: str
    """the act, such as start"""
    step: str
    """the step, such as mirror"""
    done: int
    """bytes done"""
    total: int
    """bytes in all"""


@dataclass(frozen=True, kw_only=True)
class FailedOver(PairEvent):
    """A failover is over: the survivor runs the guest alone."""

    NAME = "FAILED_OVER"
    timeline: Timeline
    """what pair-failover returns"""


@dataclass(frozen=True, kw_only=True)
class VerificationOver(PairEvent):
    """A comparison of both nodes' disks is over."""

    NAME = "VERIFIED"
    outcome: VerifyOutcome
    """equal, different or broken-off"""
    report: Verified
    """what pair-verify returns"""


@dataclass(frozen=True, kw_only=True)
class PauseChanged(PairEvent):
    """Automatic failover was switched off or on."""

    NAME = "PAUSE_CHANGED"
    paused: bool
    """whether the supervisor only watches"""


@dataclass(frozen=True, kw_only=True)
class PaceChanged(PairEvent):
    """Adaptive mode has chosen another checkpoint delay."""

    NAME = "PACE_CHANGED"
    before_ms: int
    """the delay until now"""
    after_ms: int
    """the delay from the checkpoint under way on"""
    why: str
    """why, in a sentence"""


@dataclass(frozen=True, kw_only=True)
class ClientDropped(PairEvent):
    """The last message to a client that read too slowly; events after it are lost to it."""

    NAME = "CLIENT_DROPPED"
    reason: str
    """why, in a sentence"""


#: Every event by its name, in the order of the schema.
EVENTS: Mapping[str, type[PairEvent]] = {
    kind.NAME: kind
    for kind in (
        StateChanged,
        CheckpointPhase,
        NodeEvent,
        NodeDead,
        DiagnosisChanged,
        StepReached,
        ProgressMade,
        FailedOver,
        VerificationOver,
        PauseChanged,
        PaceChanged,
        ClientDropped,
    )
}


def read(name: str, data: Mapping[str, Any]) -> PairEvent | None:
    """Read an event that arrived; return None for one that this version does not understand.

    ``-`` in the names of members counts as ``_``: earlier supervisors wrote dashes, and so did the
    runs that were recorded with them.
    """
    kind = EVENTS.get(name)
    if kind is None:
        return None
    try:
        return revive(kind, {member.replace("-", "_"): value for member, value in data.items()})
    except ValueError:
        return None

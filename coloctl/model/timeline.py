"""Name the steps of a failover and hold when each was done, with the fence before it.

Written by `ha.failover` and `supervisor.acts.failover`; read by `metrics/`, by `cli/` and by every
reader of a history, through `model.revive`. Values only.

Invariant: `POINT_OF_NO_RETURN` is the step up to which the lost node could have gone on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from coloctl.model.pair import NodeName, Role
from coloctl.model.revive import revive


class FailoverStep(StrEnum):
    """One step of a failover; in the order in which they are done when all goes well."""

    DETECTED = "detected"
    CONFIRMATION_AWAITED = "confirmation-awaited"
    FENCED = "fenced"
    ARBITRATED = "arbitrated"
    YANKED = "yanked"
    PROMOTED = "promoted"
    RUNNING = "running"
    FIRST_PACKET = "first-packet"  #: comes when the guest sends something
    CLEARED = "cleared"
    MERGED = "merged"  #: comes when QEMU has merged the overlays, minutes later on a slow disk
    VERIFIED = "verified"

    @property
    def meaning(self) -> str:
        """A few words for a person."""
        return _MEANINGS[self]


_MEANINGS: Mapping[FailoverStep, str] = {
    FailoverStep.DETECTED: "it was noticed, or asked for",
    FailoverStep.CONFIRMATION_AWAITED: "an operator is asked whether the node is off",
    FailoverStep.FENCED: "the other node is fenced",
    FailoverStep.ARBITRATED: "the generation is claimed",
    FailoverStep.YANKED: "connections to it are cut",
    FailoverStep.PROMOTED: "ordered to run on alone",
    FailoverStep.RUNNING: "the guest runs",
    FailoverStep.FIRST_PACKET: "its first frame is on the LAN",
    FailoverStep.CLEARED: "the lost pair is cleared away",
    FailoverStep.MERGED: "what only the secondary held is in its image",
    FailoverStep.VERIFIED: "asked once more: it runs",
}

#: The steps that a timeline may have, in order. A confirmation is awaited, but never a step of it.
TIMELINE_STEPS = tuple(step for step in FailoverStep if step != FailoverStep.CONFIRMATION_AWAITED)

#: The step of a timeline up to which the lost node could have gone on.
POINT_OF_NO_RETURN = FailoverStep.FENCED


#: The end of a fence that has no proof, because the machine cannot be asked for one.
OUT_OF_REACH = "out-of-reach"

#: The ground on which a node that is not proven dead counts as gone, by how it was fenced.
_UNPROVEN: Mapping[str, str] = {
    OUT_OF_REACH: "its machine is out of reach; the claim decides",
    f"agent-{OUT_OF_REACH}": "its fence agent reports it off, unproven",
    f"confirmed-{OUT_OF_REACH}": "an operator declares it off, unproven",
}


@dataclass(frozen=True)
class FenceRecord:
    """The way in which a lost node was proven down, or why there is no proof.

    Note the difference: `ha.fencing.Fenced` is the proof itself, with the kernel's statement.
    """

    node: NodeName
    method: str
    how: str = ""  #: as in `ha.fencing.Fenced.how`
    ms: float | None = None  #: how long it took
    pid: int | None = None
    said: str = ""  #: the output of an asked agent
    failed: str = ""  #: why there is no proof; empty: there is one

    @property
    def ground(self) -> str:
        """A few words for a person: the ground on which the lost node counts as gone."""
        if not self.how:
            return FailoverStep.FENCED.meaning
        return _UNPROVEN.get(self.how, "the other node is dead, proven")

    def to_json(self) -> dict[str, Any]:
        """Return the document, without what it does not have."""
        return {name: value for name, value in asdict(self).items() if value not in ("", None)}


@dataclass(frozen=True)
class Timeline:
    """Record of a finished failover: each step with its time, in milliseconds since ``began_s``.

    ``began_s`` is the monotonic second at which the loss was noticed or the failover asked for,
    ``at`` its wall clock. ``fault_ms`` is when the fault happened, where that is known: zero or
    negative. ``failed`` is why the failover did not succeed, else empty.
    """

    survivor: NodeName
    lost: NodeName
    role_before: Role = Role.NONE  #: of the survivor
    steps: Mapping[str, float] = field(default_factory=dict)
    began_s: float = 0.0
    at: str = ""
    generation: int = 0
    cause: str = ""
    fault_ms: float | None = None
    failed: str = ""
    point_of_no_return: str = POINT_OF_NO_RETURN
    fence: FenceRecord | None = None  #: None: the failover ended before it

    def to_json(self) -> dict[str, Any]:
        """Return the document; its ``steps`` are ``{"detected": 0.0, "fenced": 4.2, ...}``."""
        document: dict[str, Any] = {
            "generation": self.generation,
            "cause": self.cause,
            "survivor": self.survivor,
            "lost": self.lost,
            "role_before": str(self.role_before),
            "began_s": self.began_s,
            "at": self.at,
            "fault_ms": self.fault_ms,
            "point_of_no_return": str(self.point_of_no_return),
            "steps": {str(step): at_ms for step, at_ms in self.steps.items()},
        }
        if self.failed:
            document["failed"] = self.failed
        if self.fence is not None:
            document["fence"] = self.fence.to_json()
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Timeline:
        """Read a timeline back; what an earlier coloctl left out has its default.

        A step that this version does not know is kept under its name. Raises `ValueError` for a
        document that is not a timeline.
        """
        return revive(cls, document)

    def done_s(self, step: FailoverStep) -> float:
        """Return when a step was done, monotonic; ``began_s`` for a step that is not in it."""
        return self.began_s + self.steps.get(step, 0.0) / 1000

    def since_ms(self, fault_at_s: float) -> dict[str, float]:
        """Compute the time from the fault to each step, in the order in which they were done."""
        before = (self.began_s - fault_at_s) * 1000
        times = {step: round(before + at_ms, 1) for step, at_ms in self.steps.items()}
        return dict(sorted(times.items(), key=lambda item: item[1]))

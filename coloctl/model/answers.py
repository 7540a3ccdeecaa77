"""Hold what a supervisor answers to the acts of a client, as values.

Made by `supervisor.acts` and `control.service`, read back by `control.acts`. Answers that are
more than an act's own stand elsewhere: `model.view`, `model.timeline`, `model.verified`.

Invariant: standard library only, because verbs that must start quickly read these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coloctl.model.timeline import Timeline
from coloctl.model.tuning import Value


@dataclass(frozen=True)
class Change:
    """One setting that was set, with its value before and after."""

    name: str
    before: Value
    after: Value


@dataclass(frozen=True)
class SettingsChanged:
    """The answer to `pair-set`: every setting that was set, in the order in which it was typed."""

    changed: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document; the first setting is in it twice, as earlier clients read it."""
        changed = [asdict(one) for one in self.changed]
        return {**changed[0], "changed": changed}


@dataclass(frozen=True)
class CheckpointTaken:
    """The answer to `pair-checkpoint`."""

    count: int  #: checkpoints since the pair entered COLO
    pause_ms: float | None  #: how long the guest was paused for it; None where not seen

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return asdict(self)


@dataclass(frozen=True)
class PauseAnswer:
    """The answer to `pair-pause` and `pair-resume`."""

    paused: bool
    before: bool  #: whether the pair was paused before

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return asdict(self)


@dataclass(frozen=True)
class PastFailovers:
    """The answer to `query-history`: every failover of a pair, oldest first."""

    failovers: tuple[Timeline, ...] = ()
    unreadable: int = 0  #: damaged lines, and those that this version does not know

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PastFailovers:
        """Rebuild the value; a line that is no timeline is counted, because people read this."""
        found, unreadable = [], document["unreadable"]
        for one in document["failovers"]:
            try:
                found.append(Timeline.from_json(one))
            except ValueError:
                unreadable += 1
        return cls(tuple(found), unreadable)

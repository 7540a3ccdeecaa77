"""Hold the results of checks and trials, as values that people and JSON can read; pure.

Used by `check.probe`, `check.trial` and `cli.verbs.probe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from coloctl.model.pair import Role
from coloctl.model.revive import revive


class ColoSupport(StrEnum):
    """The support for COLO of a binary, an accelerator and a machine type together."""

    WORKS = "works"
    FAILS = "fails"
    SUSPECT = "suspect"  #: there is a reason against it, and nothing was run

    UNKNOWN = "unknown"  #: it could not be found out


class CheckResult(StrEnum):
    """The result of one static check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class StaticCheck:
    """One property that was examined."""

    name: str
    verdict: CheckResult
    sentence: str
    hint: str = ""


@dataclass(frozen=True)
class Direction:
    """One pair, from its launch to the failover after the death of ``killed``."""

    killed: Role
    outcome: ColoSupport
    stage: str  #: the last that was entered; "verified" when all went well
    sentence: str
    checkpoints: int = 0
    pause_p50_ms: float | None = None
    failover_ms: float | None = None  #: from the kill to the survivor's guest running
    last_words: str = ""
    known_bug: str = ""


@dataclass(frozen=True)
class FullVerdict:
    """The result of a trial of COLO here with a binary, an accelerator and a machine type."""

    binary: str
    version: str
    accel: str
    machine: str
    outcome: ColoSupport
    sentence: str
    hint: str = ""
    known_bug: str = ""
    directions: tuple[Direction, ...] = ()
    took_s: float = 0.0
    remembered: bool = field(default=False, compare=False)

    @property
    def works(self) -> bool:
        """Return whether COLO works."""
        return self.outcome is ColoSupport.WORKS

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FullVerdict:
        """Read what `to_json` wrote; raises ValueError for anything else."""
        return revive(cls, document)

"""What a check found, as values that people and JSON can read; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from coloctl.model.pair import Role


class ColoSupport(StrEnum):
    """What is known of a binary, an accelerator and a machine type together."""

    WORKS = "works"
    FAILS = "fails"
    SUSPECT = "suspect"  #: something speaks against it, and nothing was run
    UNKNOWN = "unknown"  #: it could not be found out


class CheckResult(StrEnum):
    """What one static check found."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class StaticCheck:
    """One thing that was looked at."""

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
    """Whether a binary, an accelerator and a machine type hold COLO on this machine, tried out."""

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
        return self.outcome is ColoSupport.WORKS

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> FullVerdict:
        """The verdict of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for another."""
        directions = tuple(
            Direction(
                **{
                    **one,
                    "killed": Role(one["killed"]),
                    "outcome": ColoSupport(one["outcome"]),
                }
            )
            for one in answer["directions"]
        )
        return cls(
            **{**answer, "outcome": ColoSupport(answer["outcome"]), "directions": directions}
        )

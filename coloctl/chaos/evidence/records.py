"""Define the parts of a run's evidence: faults, events, workloads, frames, takeovers, audits.

Used by `chaos.evidence`, which collects them, and by `chaos.run.engine`, which records the faults.
Invariant: all times are CLOCK_MONOTONIC of the machine, seconds, unless a name ends in ``_ms``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coloctl.chaos.scenario.values import ScheduledFault, Workload
from coloctl.chaos.workloads.history import Op
from coloctl.model.timeline import Timeline


@dataclass(frozen=True)
class StrangerGains:
    """The result of a fault ``stranger``: how many times it got each thing, of so many tries."""

    got: Mapping[str, int]
    tried: int

    def __str__(self) -> str:
        if not self.got:
            return f"it got nothing in {self.tried} tries"
        return "it got " + ", ".join(f"{n} x {thing}" for thing, n in self.got.items())


#: The result of a fault: a part of a sentence, or data where a check reads it.
FaultResult = str | StrangerGains


@dataclass(frozen=True)
class FaultRecord:
    """A fault that was injected.

    ``missed`` is a sentence if the fault was injected outside the phase that it was meant for, or
    found no target: such a run proves nothing.
    """

    fault: ScheduledFault
    at_s: float
    nodes: tuple[str, ...] = ()  #: those that it affected
    role: str = ""  #: of the node that it affected, just before
    healed_s: float | None = None
    missed: str = ""
    note: str = ""
    result: FaultResult = ""  #: known once the fault was healed; the note ends with its text
    lived_on: bool | None = None  #: the process that was hit still lived; None: not asked


@dataclass(frozen=True)
class ObservedEvent:
    """One event of the control socket, as the listener received it."""

    at_s: float
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class WorkloadRecord:
    """The operations of one workload, and what the guest holds of it in the end.

    The shape of ``kept`` is that of its kind (`chaos.workloads`); None if the guest did not answer.
    """

    spec: Workload
    history: Sequence[Op]
    kept: Any = None


@dataclass(frozen=True)
class FrameRun:
    """``frames`` in a row that came from one node."""

    node: str
    first_s: float
    last_s: float
    frames: int


@dataclass(frozen=True)
class Audit:
    """The answer of the guest about itself. ``disk`` was read back with its caches dropped.

    Both map the clients of redis-appends to the records that the append-only file, and the server's
    memory, hold of them.
    """

    at_s: float
    boot_id: str
    disk: Mapping[int, Sequence[int]] = field(default_factory=dict)
    memory: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inventory:
    """The number of things that each QEMU held at a moment: by its role, then by their kind."""

    at_s: float
    counts: Mapping[str, Mapping[str, int]]


def takeovers_in(documents: Iterable[Mapping[str, Any]]) -> list[Timeline]:
    """Read the timelines of failovers; one that failed is no takeover, and is left out."""
    return [one for one in map(Timeline.from_json, documents) if not one.failed]

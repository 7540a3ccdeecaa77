"""Define a scenario as values: its steady state, workloads, faults and expectations.

Built by `chaos.scenario.file` from a scenario file, and by tests. A `FaultSpec` is a fault as it
was written. `chaos.scenario.schedule` makes a `ScheduledFault` of it, with nothing left to chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """The keys of one kind of fault, workload or check, besides those that all of them have."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class When(StrEnum):
    """The next moment at which a fault may be injected, once its time has come."""

    STEADY = "steady"  #: the pair is in COLO and has taken a few checkpoints since
    CHECKPOINT = "checkpoint"  #: the primary has just stopped for a checkpoint
    VMSTATE_LOAD = "vmstate-load"  #: the secondary has stopped to receive and load its state
    RESYNC = "resync"  #: the disks of a new secondary are being brought in sync
    MIGRATING = "migrating"  #: the memory of a new secondary is being sent
    FAILOVER = "failover"  #: a survivor is being promoted
    FAILED = "failed"  #: that came to nothing, and only an operator goes on


#: A number, or two between which the seed chooses.
Span = tuple[float, float]


@dataclass(frozen=True)
class FaultChoice:
    """One fault among those that a random one may be; its place in the file is its number."""

    kind: str
    target: str
    params: Mapping[str, Any] = field(default_factory=dict)
    duration_s: Span | None = None
    when: When | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class FaultSpec:
    """A fault as it was written. A random one is drawn from ``choices`` each time.

    It is injected ``at_s`` after the steady state, or after the fault named ``after``; then at the
    next moment of ``when``; ``times`` times in all, ``every_s`` apart.
    """

    name: str
    choices: tuple[FaultChoice, ...]
    at_s: Span = (0.0, 0.0)
    when: When | None = None
    after: str = ""
    every_s: Span = (0.0, 0.0)
    times: int = 1


@dataclass(frozen=True)
class Workload:
    """Clients of one kind. ``name`` distinguishes their histories."""

    name: str
    kind: str
    clients: int
    params: Mapping[str, Any] = field(default_factory=dict)
    numbered_from: int = 0  #: no two workloads of a scenario have clients of the same number
    begins: str = "booted"  #: or "protected": it comes when the pair is in COLO for the first time


@dataclass(frozen=True)
class SteadyState:
    """The conditions before the first fault; a run that never meets them is unknown."""

    protection: str = "colo"
    checkpoints_min: int = 3
    acknowledged_min: int = 20
    within_s: float = 120.0


@dataclass(frozen=True)
class Scenario:
    """A scenario with its seed, as its file describes it."""

    name: str
    title: str
    why: str
    seed: int
    steady_state: SteadyState
    workloads: tuple[Workload, ...]
    faults: tuple[FaultSpec, ...]
    expect: Mapping[str, Mapping[str, Any]]
    pair: Mapping[str, Any] = field(default_factory=dict)  #: tables laid over the lab's pair file
    guest: Mapping[str, Any] = field(default_factory=dict)  #: the properties of the lab's guest
    promises: tuple[int, ...] = ()  #: those of README that it attacks
    settle_s: float = 3.0  #: of load after the last fault was healed


@dataclass(frozen=True)
class ScheduledFault:
    """One fault of one run, with every choice made that is left to chance in its `FaultSpec`."""

    name: str  #: its fault's, with a number where that is injected several times
    kind: str
    target: str
    at_s: float
    when: When | None = None
    after: str = ""
    duration_s: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

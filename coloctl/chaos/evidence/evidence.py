"""What a run leaves for its judges: gathered while it went on and when it was over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coloctl.chaos.evidence.lan import Spell
from coloctl.chaos.evidence.takeover import Takeover
from coloctl.chaos.scenario.values import Planned, WorkloadSpec
from coloctl.chaos.workloads.history import Op
from coloctl.model.event import Record


@dataclass(frozen=True)
class Struck:
    """A fault that was dealt. All times are CLOCK_MONOTONIC of the machine, seconds.

    ``missed`` is a sentence when the fault fell outside the phase that it was meant for, or met
    nothing to hurt: such a run proves nothing.
    """

    fault: Planned
    at_s: float
    nodes: tuple[str, ...] = ()  #: those it hit
    role: str = ""  #: of the node that it hit, just before
    healed_s: float | None = None
    missed: str = ""
    note: str = ""


@dataclass(frozen=True)
class Said:
    """One event of the control socket, as it was heard."""

    at_s: float
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What one workload did, and what the guest holds of it in the end.

    The shape of ``kept`` is its kind's (workloads/__init__.py); None when nobody could ask.
    """

    spec: WorkloadSpec
    history: Sequence[Op]
    kept: Any = None


@dataclass(frozen=True)
class Audit:
    """What the guest answered about itself. ``disk`` was read back with its caches dropped.

    Both map the clients of redis-appends to the records that the append-only file, and the server's
    memory, hold of them.
    """

    at_s: float
    boot_id: str
    disk: Mapping[int, Sequence[int]] = field(default_factory=dict)
    memory: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Everything about one run that a judge may look at."""

    steady_s: float  #: when the steady state held, and the clock of the faults began
    ended_s: float  #: when the load was told to end
    struck: Sequence[Struck]
    works: Mapping[str, Work]  #: by the name of the workload
    events: Sequence[Said] = ()
    takeovers: Sequence[Takeover] = ()
    spells: Sequence[Spell] = ()  #: whose frames reached the guest's LAN
    journal: Sequence[Record] = ()
    audits: Sequence[Audit] = ()  #: one in the steady state, one at the end, where they worked
    #: Per disk, the places at which the nodes' copies differ after a last checkpoint; None where
    #: they could not be compared.
    differences: Mapping[str, Sequence[int]] | None = None
    bad_checksums: int | None = None  #: TCP segments with a wrong one that reached the client
    remains: Sequence[str] | None = None  #: what was left when the run was swept; None: not looked
    view: Mapping[str, Any] = field(default_factory=dict)  #: the pair's last one

    @property
    def first_fault_s(self) -> float | None:
        return min((one.at_s for one in self.struck), default=None)

    @property
    def last_fault_s(self) -> float | None:
        """When the last fault was struck."""
        return max((one.at_s for one in self.struck), default=None)

"""Hold the evidence of a run: collected while it went on and when it was over.

Called by `chaos.evidence.gather`, which makes it for `chaos.run.runner`; read by `chaos.checks`,
`chaos.report` and the document of a run. Calls `chaos.evidence.chronicle` for what is computed from
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.evidence.records import (
    Audit,
    FaultRecord,
    FrameRun,
    Inventory,
    ObservedEvent,
    WorkloadRecord,
)
from coloctl.model.event import Record
from coloctl.model.timeline import Timeline
from coloctl.model.view import PairView


@dataclass(frozen=True)
class Evidence:
    """All that a check may read about one run."""

    steady_s: float  #: when the steady state held, and the clock of the faults began
    ended_s: float  #: when the load was ordered to end
    faults: Sequence[FaultRecord]
    works: Mapping[str, WorkloadRecord]  #: by the name of the workload
    events: Sequence[ObservedEvent] = ()
    takeovers: Sequence[Timeline] = ()
    frames: Sequence[FrameRun] = ()  #: those that reached the guest's LAN
    journal: Sequence[Record] = ()
    audits: Sequence[Audit] = ()  #: one in the steady state, one at the end, where they worked
    inventories: Sequence[Inventory] = ()  #: one each time that the pair came into COLO
    #: Per disk, the places at which the nodes' copies differ after a last checkpoint; None where
    #: they could not be compared.
    differences: Mapping[str, Sequence[int]] | None = None
    bad_checksums: int | None = None  #: TCP segments with a wrong one that reached the client
    remains: Sequence[str] | None = None  #: left after the run was swept; None: not searched
    view: PairView | None = None  #: the last one; None where no supervisor answered

    @property
    def first_fault_s(self) -> float | None:
        return min((one.at_s for one in self.faults), default=None)

    @property
    def last_fault_s(self) -> float | None:
        return max((one.at_s for one in self.faults), default=None)

    @cached_property
    def chronicle(self) -> Chronicle:
        """The states, primaries, takeovers and silences of the run; computed once."""
        return Chronicle(
            faults=self.faults,
            works=self.works,
            events=self.events,
            written_takeovers=self.takeovers,
            frames=self.frames,
            journal=self.journal,
            view=self.view,
        )

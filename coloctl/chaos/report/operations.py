"""Prepare the operations of a history for a picture: each with its latency, and thinned; pure.

Called by `chaos.report.chart` and `chaos.report.lanes`; reads `chaos.workloads.history`.
Invariant: what is left out lies on a dot that is drawn, or beside it. The slowest are always drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.silences import Silence
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads.history import Op, OpStatus, operations

#: The longest silences of a run; a picture of one fault must find those around it.
SILENCES_MAX = 100

Point = tuple[float, float]


class DrawnOperation(NamedTuple):
    """One operation from its begin to its answer, or to the end of the run without one."""

    began_s: float
    ended_s: float
    status: OpStatus

    @property
    def ms(self) -> float:
        return (self.ended_s - self.began_s) * 1000


@dataclass(frozen=True)
class DrawnWorkload:
    """The parts of one workload that are drawn; made once for all pictures of a run."""

    spec: Workload
    operations: Sequence[DrawnOperation]
    silences: Sequence[Silence]  #: in which no client of it was served
    breaks: Sequence[Op]  #: the failures of its connections


def drawn(evidence: Evidence) -> list[DrawnWorkload]:
    """Return that of every workload with any operation."""
    return [
        DrawnWorkload(
            work.spec,
            drawn_operations(work.history, evidence.ended_s),
            evidence.chronicle.service_gaps(name, SILENCES_MAX),
            [op for op in work.history if op.n < 0 and op.outcome is OpStatus.FAIL],
        )
        for name, work in evidence.works.items()
        if work.history
    ]


def drawn_operations(history: Iterable[Op], ended_s: float) -> list[DrawnOperation]:
    """Return every operation that began; one without an answer is unknown until the end."""
    return [
        DrawnOperation(
            one.begun.at_s,
            max(ended_s, one.begun.at_s) if one.ended is None else one.ended.at_s,
            one.status,
        )
        for one in operations(history)
    ]


def thinned(
    found: Sequence[DrawnOperation], place: Callable[[DrawnOperation], Point], most: int
) -> list[Point]:
    """Choose the dots: at most ``most``, one per cell of a grid as fine as that allows.

    Few operations are slow, so that each of those has a cell of its own.
    """
    # The highest of a cell first: upwards is slower.
    left, grain = sorted(map(place, found), key=lambda where: where[1]), 1.0
    while True:
        cells: dict[tuple[int, int], Point] = {}
        for x, y in left:
            cells.setdefault((int(x / grain), int(y / grain)), (x, y))
        left = list(cells.values())
        if len(left) <= most:
            return left
        grain *= 2

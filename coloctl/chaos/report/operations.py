"""Prepare the operations of a history for a picture: each with its latency, and thinned; pure.

Called by `chaos.report.chart` and `chaos.report.lanes`; reads `chaos.workloads.history`.
Invariant: what is left out lies on a dot that is drawn, or beside it. The slowest are always drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.silences import Silence
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads.history import Op, OpStatus

#: The longest silences of a run; a picture of one fault must find those around it.
SILENCES_MAX = 100


@dataclass(frozen=True)
class Answered:
    """One operation from its begin to its answer, or its end without one, which is ``op``."""

    op: Op
    began_s: float

    @property
    def ms(self) -> float:
        return (self.op.at_s - self.began_s) * 1000


@dataclass(frozen=True)
class DrawnWorkload:
    """The parts of one workload that are drawn; made once for all pictures of a run."""

    spec: Workload
    operations: Sequence[Answered]
    silences: Sequence[Silence]  #: in which no client of it was served
    breaks: Sequence[Op]


def drawn(evidence: Evidence) -> list[DrawnWorkload]:
    """Return that of every workload with any operation."""
    return [
        DrawnWorkload(
            work.spec,
            answered(work.history, evidence.ended_s),
            evidence.chronicle.service_gaps(name, SILENCES_MAX),
            breaks(work.history),
        )
        for name, work in evidence.works.items()
        if work.history
    ]


def answered(history: Iterable[Op], ended_s: float) -> list[Answered]:
    """Return every operation that began; one without an answer is unknown until the end.

    What concerns a connection alone has no latency: `breaks` returns it.
    """
    begun: dict[tuple[int, int], Op] = {}
    found = []
    for op in sorted(history, key=lambda op: op.at_s):
        if op.n < 0:
            continue
        if op.outcome is OpStatus.INVOKE:
            begun[op.client, op.n] = op
        elif (began := begun.pop((op.client, op.n), None)) is not None:
            found.append(Answered(op, began.at_s))
    for op in begun.values():
        never = Op(max(ended_s, op.at_s), op.client, OpStatus.INFO, op.n, "never answered")
        found.append(Answered(never, op.at_s))
    return found


def breaks(history: Iterable[Op]) -> list[Op]:
    """Return the failures of connections."""
    return [op for op in history if op.n < 0 and op.outcome is OpStatus.FAIL]


def thinned(
    operations: Sequence[Answered], place: Callable[[Answered], tuple[float, float]], most: int
) -> list[tuple[float, float]]:
    """Choose the dots: at most ``most``, one per cell of a grid as fine as that allows.

    Few operations are slow, so that each of those has a cell of its own.
    """
    # The highest of a cell first: upwards is slower.
    left, grain = sorted(map(place, operations), key=lambda where: where[1]), 1.0
    while True:
        cells: dict[tuple[int, int], tuple[float, float]] = {}
        for x, y in left:
            cells.setdefault((int(x / grain), int(y / grain)), (x, y))
        left = list(cells.values())
        if len(left) <= most:
            return left
        grain *= 2

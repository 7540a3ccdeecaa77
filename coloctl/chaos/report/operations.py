"""The operations of a history as a picture needs them: each with its latency, and thinned; pure.

Promise: what is left out lies on a dot that is drawn, or beside it. The slowest are always drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.scenario.values import WorkloadSpec
from coloctl.chaos.workloads.history import Op, Outcome

#: A silence shorter than this is not worth a word, milliseconds.
SILENCE_MIN_MS = 100.0
#: The longest of a run; a picture of one fault must find those around it.
SILENCES_MAX = 100


@dataclass(frozen=True)
class Answered:
    """One operation from its begin to what its client learnt of it; ``op`` is the latter."""

    op: Op
    began_s: float

    @property
    def ms(self) -> float:
        return (self.op.at_s - self.began_s) * 1000


@dataclass(frozen=True)
class Silence:
    """No client of a workload got a reply in between."""

    from_s: float
    to_s: float

    @property
    def ms(self) -> float:
        return (self.to_s - self.from_s) * 1000


@dataclass(frozen=True)
class Seen:
    """What there is to draw of one workload; made once for all pictures of a run."""

    spec: WorkloadSpec
    operations: Sequence[Answered]
    silences: Sequence[Silence]
    breaks: Sequence[Op]


def seen(evidence: Evidence) -> list[Seen]:
    """That of every workload that did anything."""
    return [
        Seen(
            work.spec,
            answered(work.history, evidence.ended_s),
            silences(work.history, SILENCES_MAX),
            breaks(work.history),
        )
        for work in evidence.works.values()
        if work.history
    ]


def answered(history: Iterable[Op], ended_s: float) -> list[Answered]:
    """Every operation that began; one that nobody answered is unknown from its end on.

    What concerns a connection alone has no latency: `breaks` tells it.
    """
    begun: dict[tuple[int, int], Op] = {}
    found = []
    for op in sorted(history, key=lambda op: op.at_s):
        if op.n < 0:
            continue
        if op.outcome is Outcome.INVOKE:
            begun[op.client, op.n] = op
        elif (began := begun.pop((op.client, op.n), None)) is not None:
            found.append(Answered(op, began.at_s))
    for op in begun.values():
        never = Op(max(ended_s, op.at_s), op.client, Outcome.INFO, op.n, "never answered")
        found.append(Answered(never, op.at_s))
    return found


def breaks(history: Iterable[Op]) -> list[Op]:
    """What went wrong with connections."""
    return [op for op in history if op.n < 0 and op.outcome is Outcome.FAIL]


def thinned(
    operations: Sequence[Answered], place: Callable[[Answered], tuple[float, float]], most: int
) -> list[tuple[float, float]]:
    """Where the dots are: at most ``most``, one per cell of a grid as fine as that allows.

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


def silences(history: Iterable[Op], most: int) -> list[Silence]:
    """The longest ones, those that stand out, in order."""
    replies = sorted(op.at_s for op in history if op.outcome is Outcome.OK)
    gaps = [Silence(one, two) for one, two in pairwise(replies)]
    if not gaps:
        return []
    least = max(SILENCE_MIN_MS, 5 * median(gap.ms for gap in gaps))
    longest = sorted((gap for gap in gaps if gap.ms >= least), key=lambda gap: -gap.ms)
    return sorted(longest[:most], key=lambda gap: gap.from_s)

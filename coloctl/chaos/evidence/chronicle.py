"""Compute the history of a pair during a run, once: its states, primaries, takeovers, silences.

Called by `chaos.evidence.evidence`, which caches it for every check, the document and the page, and
by `bench.circles` for a run that still goes on. A supervisor that is killed takes its connections
with it, so an event may have no listener; its journal lies on disk. Both are read here, and nowhere
else are they merged. Invariant: all times are monotonic seconds of one kernel; a journal's wall
clock is never compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from operator import itemgetter
from statistics import median

from coloctl.chaos.evidence.records import (
    FaultRecord,
    FrameRun,
    ObservedEvent,
    WorkloadRecord,
    takeovers_in,
)
from coloctl.chaos.evidence.silences import Outage, Replies, Silence
from coloctl.chaos.evidence.states import StateChange, merged
from coloctl.model import pairevent
from coloctl.model.event import LAUNCHED, Kind, Record
from coloctl.model.pair import NODES, Role
from coloctl.model.pairevent import CheckpointPhase
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.model.view import PairView

#: A silence that begins later than that after a fault is not attributed to it.
OUTAGE_WITHIN_S = 10.0
#: Clients notice the end of a join for so long after it.
JOIN_AFTER_S = 0.5
#: A frame that a dead node sent may wait so long in this kernel's backlog, seconds.
BACKLOG_S = 0.005
#: A shorter silence of a workload is not named, milliseconds.
SILENCE_MIN_MS = 100.0


@dataclass(frozen=True)
class PrimaryPeriod:
    """``node`` alone may be heard from ``from_s`` to ``to_s``; it serves from ``serves_s`` on.

    The first moment is the proof that the other node is dead, the second one the promotion.
    """

    node: str
    from_s: float
    serves_s: float
    to_s: float


@dataclass(frozen=True)
class NodePeriod:
    """One state of a node (primary, secondary, joining, dead, absent) or of the protection."""

    what: str
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Promotion:
    """A generation that was claimed for a survivor; ``fence`` is the proof before it, if any."""

    intent: Record
    fence: Record | None

    @property
    def lost(self) -> str:
        """The node that was fenced; empty when none was."""
        return self.fence.node if self.fence else ""


@dataclass(frozen=True)
class Pause:
    """The guest was stopped for a checkpoint."""

    node: str
    began_s: float
    ended_s: float

    @property
    def ms(self) -> float:
        return (self.ended_s - self.began_s) * 1000


@dataclass(frozen=True)
class FaultEffect:
    """The consequences of one fault; what follows the next fault is attributed to that one."""

    ends_s: float  #: when its consequences are over: clients are served, the pair is protected
    outage: Outage  #: silences that began before a new secondary began to join
    join_ms: float | None  #: the longest silence while it joined
    lost_s: float | None  #: when the pair left COLO; None when it did not
    again_s: float | None  #: when it was in COLO again; None when it never was
    takeover: Timeline | None


@dataclass(frozen=True)
class Chronicle:
    """The history of a pair during a run; each part is computed when it is first asked for."""

    faults: Sequence[FaultRecord] = ()
    works: Mapping[str, WorkloadRecord] | None = None
    events: Sequence[ObservedEvent] = ()
    written_takeovers: Sequence[Timeline] = ()  #: those of the supervisor's history file
    frames: Sequence[FrameRun] = ()
    journal: Sequence[Record] = ()
    view: PairView | None = None

    @cached_property
    def states(self) -> list[StateChange]:
        """Return each change of state once, in time: heard, or else as the journal has it."""
        return merged(self.events, self.journal)

    @cached_property
    def takeovers(self) -> list[Timeline]:
        """Return each takeover once, in time, that was announced or written down."""
        timelines = [one.data["timeline"] for one in self.events if one.name == "FAILED_OVER"]
        timelines += [one.data for one in self.journal if one.step == "timeline"]
        found = {one.began_s: one for one in (*takeovers_in(timelines), *self.written_takeovers)}
        return sorted(found.values(), key=lambda one: one.began_s)

    @cached_property
    def promotions(self) -> list[Promotion]:
        """Return each promotion with the fence of its own act: a proof serves one promotion."""
        found: list[Promotion] = []
        fence: Record | None = None
        for record in self.journal:
            if record.step == "fence" and "how" in record.data:
                fence = record
            elif record.kind is Kind.INTENT and record.step == "promote":
                found.append(Promotion(record, fence))
                fence = None
            elif record.kind is Kind.INTENT and not record.step:
                fence = None
        return found

    @cached_property
    def primaries(self) -> list[PrimaryPeriod]:
        """Return which node was the primary when; the first period has no begin.

        A node's period ends when it is fenced for a survivor that is promoted, or when the guest
        is started on the other node.
        """
        turns: list[tuple[float, str]] = [
            (one.done_s(FailoverStep.FENCED), one.survivor) for one in self.takeovers
        ]
        turns += [
            (one.fence.mono_s, _other(one.lost)) for one in self.promotions if one.fence is not None
        ]
        # A guest that was started again; for a survivor the record follows its promotion.
        turns += [
            (one.mono_s, one.node) for one in self.journal if one.data.get(LAUNCHED) == Role.PRIMARY
        ]
        if self.frames and all(self.frames[0].first_s < at_s for at_s, _ in turns):
            turns.append((-math.inf, self.frames[0].node))
        return [
            PrimaryPeriod(one.what, one.from_s, self._serves_s(one.what, one.from_s), one.to_s)
            for one in _periods(sorted(turns), math.inf)
        ]

    def _serves_s(self, node: str, from_s: float) -> float:
        promoted = (
            one.done_s(FailoverStep.PROMOTED)
            for one in self.takeovers
            if one.survivor == node and one.began_s <= from_s <= one.done_s(FailoverStep.PROMOTED)
        )
        return next(promoted, from_s)

    def primary_at(self, at_s: float) -> str:
        """Return the node whose output reached the clients then: a survivor from its promotion."""
        serving = [one.node for one in self.primaries if one.serves_s <= at_s]
        if serving:
            return serving[-1]
        if self.takeovers:
            first = self.takeovers[0]
            return first.lost if first.role_before == Role.SECONDARY else first.survivor
        checkpoints = (one.data["node"] for one in self.events if one.name == "CHECKPOINT")
        seen = self.view.primary() if self.view else None
        return str(next(checkpoints, seen.name if seen else NODES[0]))

    @cached_property
    def pauses(self) -> list[Pause]:
        """Return the pause of each checkpoint that was completed, in order."""
        phases = ((one.at_s, pairevent.read(one.name, one.data)) for one in self.events)
        return [
            Pause(phase.node, at_s - phase.pause_ms / 1000, at_s)
            for at_s, phase in phases
            if isinstance(phase, CheckpointPhase) and phase.pause_ms is not None
        ]

    def checkpoints(self, from_s: float, to_s: float) -> int:
        """Count the checkpoints that ended in (``from_s``, ``to_s``]."""
        return sum(
            one.name == "CHECKPOINT" and one.data["phase"] == "end" and from_s < one.at_s <= to_s
            for one in self.events
        )

    @cached_property
    def replies(self) -> Replies:
        """Return when each client was served, and so when it was not."""
        return Replies({name: work.history for name, work in (self.works or {}).items()})

    @cached_property
    def effects(self) -> list[FaultEffect]:
        """Return what each fault brought about, in the order of the faults."""
        return [self._effect(one) for one in self.faults]

    def _effect(self, fault: FaultRecord) -> FaultEffect:
        next_s = self.next_fault_s(fault)
        end_s = min(next_s, fault.at_s + OUTAGE_WITHIN_S)
        lost_s = next(
            (one.at_s for one in self.left_protection if fault.at_s <= one.at_s < next_s), None
        )
        again_s = join_s = join_ms = None
        if lost_s is not None:
            after = [one for one in self.states if one.at_s >= lost_s]
            again_s = next((one.at_s for one in after if one.after == "colo"), None)
            joins = (one.at_s for one in after if one.after in ("resync", "migrating"))
            join_s = next(joins, None)
        if join_s is not None and join_s < end_s:
            joined_s = (end_s if again_s is None else again_s) + JOIN_AFTER_S
            joining = self.replies.outage(join_s, began_before_s=min(joined_s, next_s))
            join_ms, end_s = joining.longest_ms, join_s
        outage = self.replies.outage(fault.at_s, began_before_s=end_s)
        takeover = next((one for one in self.takeovers if fault.at_s <= one.began_s < next_s), None)
        ends = [fault.at_s + (outage.longest_ms or 0.0) / 1000]
        ends += [
            one.done_s(FailoverStep.VERIFIED)
            for one in self.takeovers
            if fault.at_s <= one.done_s(FailoverStep.VERIFIED) <= next_s
        ]
        ends += [] if again_s is None else [again_s]
        return FaultEffect(min(max(ends), next_s), outage, join_ms, lost_s, again_s, takeover)

    def next_fault_s(self, fault: FaultRecord) -> float:
        """Return when the next fault was injected; infinity after the last one."""
        return min((one.at_s for one in self.faults if one.at_s > fault.at_s), default=math.inf)

    @cached_property
    def left_protection(self) -> list[StateChange]:
        """Return each change by which the pair left COLO."""
        return [one for one in self.states if one.before == "colo"]

    def protection(self, to_s: float) -> list[NodePeriod]:
        """Return the protection of the pair over time, up to ``to_s``."""
        return _periods([(one.at_s, one.after) for one in self.states], to_s)

    def nodes(self, to_s: float) -> dict[str, list[NodePeriod]]:
        """Return what each node was over time, up to ``to_s``; without a node that is unknown."""
        found = {node: _periods(self._roles(node), to_s) for node in NODES}
        return {node: periods for node, periods in found.items() if periods}

    def _roles(self, node: str) -> list[tuple[float, str]]:
        """Return when the node became what, in order."""
        found: list[tuple[float, str]] = []
        for takeover in self.takeovers:
            if node == takeover.survivor:
                found.append((takeover.done_s(FailoverStep.PROMOTED), "primary"))
            elif node == takeover.lost:
                found.append((takeover.done_s(FailoverStep.FENCED), "dead"))
        for event in self.events:
            if event.name == "NODE_DEAD" and event.data["node"] == node:
                found.append((event.at_s, "dead"))
            elif (
                event.name == "STEP"
                and event.data["step"] == "secondary"
                and self.primary_at(event.at_s) != node
            ):
                found.append((event.at_s, "joining"))
        for one in self.states:
            primary = self.primary_at(one.at_s) == node
            if one.after == "down":
                found.append((one.at_s, "absent"))
            elif one.after == "colo":
                found.append((one.at_s, "primary" if primary else "secondary"))
            elif one.fact == "guest-started":
                found.append((one.at_s, "primary" if primary else "absent"))
            elif one.fact == "protection-abandoned" and not primary:
                found.append((one.at_s, "absent"))
        return sorted(found)

    def service_gaps(self, workload: str, most: int) -> list[Silence]:
        """Return the longest times, ``most`` of them, in which no client of it was served.

        They last at least `SILENCE_MIN_MS` and five times the median; ``client`` is -1.
        """
        replies = self.replies.of_workload(workload)
        gaps = [Silence(workload, -1, one, two) for one, two in pairwise(replies)]
        if not gaps:
            return []
        least = max(SILENCE_MIN_MS, 5 * median(gap.ms for gap in gaps))
        longest = sorted((gap for gap in gaps if gap.ms >= least), key=lambda gap: -gap.ms)
        return sorted(longest[:most], key=lambda gap: gap.from_s)

    def frames_after(self, node: str, since_s: float) -> int:
        """Count the frames of the node in runs that lasted beyond ``since_s``.

        A run that began before counts whole: it has no finer times.
        """
        return sum(one.frames for one in self.frames if one.node == node and one.last_s > since_s)

    def first_frame_s(self, node: str, since_s: float) -> float | None:
        """Return when the node's first run of frames since then began; None when there was none."""
        runs = (one for one in self.frames if one.node == node and one.first_s >= since_s)
        return next((one.first_s for one in runs), None)


def _other(node: str) -> str:
    return next(name for name in NODES if name != node)


def _periods(changes: Sequence[tuple[float, str]], to_s: float) -> list[NodePeriod]:
    """Return how long each was what it had become; what lasted no time at all is left out."""
    end = (max([to_s, *(at_s for at_s, _ in changes[-1:])]), "")
    lasting = [one for one, after in pairwise([*changes, end]) if after[0] > one[0]]
    begun = [next(same) for _, same in groupby(lasting, key=itemgetter(1))]
    return [NodePeriod(what, at_s, after[0]) for (at_s, what), after in pairwise([*begun, end])]

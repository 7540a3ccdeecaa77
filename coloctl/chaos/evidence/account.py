"""What the evidence of a run says in figures: silences, pauses, lost and regained protection; pure.

All times are those of the evidence: monotonic seconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from coloctl.chaos.checks import verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord, ObservedEvent, WorkloadRecord
from coloctl.chaos.workloads.history import Outcome

#: A silence that begins later than that after a fault is not the fault's doing.
OUTAGE_WITHIN_S = 10.0
#: Clients feel the end of a join for so long after it.
JOIN_AFTER_S = 0.5


@dataclass(frozen=True)
class Pause:
    """The guest stood still for a checkpoint."""

    node: str
    began_s: float
    ended_s: float

    @property
    def ms(self) -> float:
        return (self.ended_s - self.began_s) * 1000


def pauses(events: Sequence[ObservedEvent]) -> list[Pause]:
    """Every checkpoint that was completed, in order."""
    return [
        Pause(one.data["node"], one.at_s - one.data["pause-ms"] / 1000, one.at_s)
        for one in events
        if one.name == "CHECKPOINT" and one.data.get("pause-ms") is not None
    ]


@dataclass(frozen=True)
class Gap:
    """The pair left COLO because of a fault; ``again_s`` is None where it never came back."""

    lost_s: float
    again_s: float | None


def protection_gap(evidence: Evidence, fault: FaultRecord) -> Gap | None:
    """How long the pair was not in COLO since the fault; None when it did not leave it.

    What happens after the next fault is that one's doing.
    """
    end_s = next_fault_s(evidence, fault)
    moves = [one for one in evidence.events if one.name == "STATE_CHANGED"]
    lost_s = next(
        (
            one.at_s
            for one in moves
            if fault.at_s <= one.at_s < end_s and one.data["before"] == "colo"
        ),
        None,
    )
    if lost_s is None:
        return None
    return Gap(
        lost_s,
        next((m.at_s for m in moves if m.at_s >= lost_s and m.data["after"] == "colo"), None),
    )


def next_fault_s(evidence: Evidence, fault: FaultRecord) -> float:
    """When the next fault was struck; for ever after for the last one."""
    return min((one.at_s for one in evidence.faults if one.at_s > fault.at_s), default=float("inf"))


class Replies:
    """When each client got its replies, in order, for many questions about silences."""

    def __init__(self, works: Mapping[str, WorkloadRecord]) -> None:
        found: dict[int, list[float]] = defaultdict(list)
        for op in chain.from_iterable(work.history for work in works.values()):
            if op.outcome is Outcome.OK:
                found[op.client].append(op.at_s)
        self._clients = [sorted(times) for times in found.values()]

    def silence(self, from_s: float, to_s: float) -> verdict.Outage:
        """The longest silence of any client that ended after ``from_s`` and began before ``to_s``.

        ``first_reply_ms`` is from ``from_s`` to the end of the first of the clients' longest ones.
        """
        longest = []
        for times in self._clients:
            first = max(1, bisect_right(times, from_s))
            last = bisect_left(times, to_s)
            if gaps := [(times[n] - times[n - 1], times[n]) for n in range(first, last + 1)
                        if n < len(times)]:  # fmt: skip
                longest.append(max(gaps))
        if not longest:
            return verdict.Outage(None, None)
        return verdict.Outage(
            round(max(longest)[0] * 1000, 1),
            round((min(end_s for _, end_s in longest) - from_s) * 1000, 1),
        )


@dataclass(frozen=True)
class Felt:
    """What clients felt: of a fault, and of the join of a new secondary after it."""

    outage: verdict.Outage
    join_ms: float | None


def felt(evidence: Evidence) -> list[Felt]:
    """That of each fault, in their order.

    A fault's own silences are those that begin before the pair begins to protect itself again.
    """
    replies = Replies(evidence.works)
    return [_felt(evidence, fault, replies) for fault in evidence.faults]


def _felt(evidence: Evidence, fault: FaultRecord, replies: Replies) -> Felt:
    end_s = min(next_fault_s(evidence, fault), fault.at_s + OUTAGE_WITHIN_S)
    gap = protection_gap(evidence, fault)
    join_s = None if gap is None else _join_s(evidence, gap)
    if gap is None or join_s is None or join_s >= end_s:
        return Felt(replies.silence(fault.at_s, end_s), None)
    again_s = (end_s if gap.again_s is None else gap.again_s) + JOIN_AFTER_S
    joined = replies.silence(join_s, min(again_s, next_fault_s(evidence, fault)))
    return Felt(replies.silence(fault.at_s, join_s), joined.longest_ms)


def _join_s(evidence: Evidence, gap: Gap) -> float | None:
    """When a new secondary began to join after the protection was lost."""
    return next(
        (
            one.at_s
            for one in evidence.events
            if one.name == "STATE_CHANGED"
            and one.at_s >= gap.lost_s
            and one.data["after"] in ("resync", "migrating")
        ),
        None,
    )

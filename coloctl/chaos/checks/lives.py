"""What the supervisor said and wrote of a run, put together: states, promotions, takeovers.

An event may have been said while nobody listened, for a supervisor that is killed takes its clients
with it; its journal lies on disk. Judges ask here for what either of them tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Takeover
from coloctl.model.event import Kind, Record


@dataclass(frozen=True)
class Moved:
    """The protection table was applied."""

    at_s: float
    before: str
    after: str
    reason: str = ""


@dataclass(frozen=True)
class Promotion:
    """A generation was claimed for a survivor; ``fence`` is the proof before it, if any."""

    intent: Record
    fence: Record | None

    @property
    def lost(self) -> str:
        """The node that was fenced; empty when none was."""
        return self.fence.node if self.fence else ""


def moves(evidence: Evidence) -> list[Moved]:
    """Every change of state that was heard or written, in time; most of them twice."""
    heard = [
        Moved(said.at_s, said.data["before"], said.data["after"], said.data.get("reason", ""))
        for said in evidence.events
        if said.name == "STATE_CHANGED"
    ]
    written = [
        Moved(record.mono_s, record.before, record.after, str(record.data.get("reason", "")))
        for record in evidence.journal
        if record.kind is Kind.STATE and record.before != record.after
    ]
    return sorted(heard + written, key=lambda move: move.at_s)


def takeovers(evidence: Evidence) -> list[Takeover]:
    """Every takeover that was heard or written, once, in time."""
    written = [
        Takeover.of(record.data)
        for record in evidence.journal
        if record.step == "timeline" and "failed" not in record.data
    ]
    found = {one.began_s: one for one in (*written, *evidence.takeovers)}
    return sorted(found.values(), key=lambda one: one.began_s)


def promotions(journal: Sequence[Record]) -> list[Promotion]:
    """Every promotion with the fence of its own act: a proof is good for one promotion only."""
    found: list[Promotion] = []
    fence: Record | None = None
    for record in journal:
        if record.step == "fence" and "how" in record.data:
            fence = record
        elif record.kind is Kind.INTENT and record.step == "promote":
            found.append(Promotion(record, fence))
            fence = None
        elif record.kind is Kind.INTENT and not record.step:
            fence = None
    return found

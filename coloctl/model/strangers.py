"""Describe strangers that were connected to the wires of a pair and were cut off.

`colo.peers` finds them, `supervisor.beside` keeps them, and `cli.views.pair` and
`cli.verbs.explain` show them. They are counted since the supervisor began; the journal names each
of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stranger:
    """One process other than the peer that was connected to a wire, and was cut off."""

    wire: str  #: for people: "the disks"
    at: str  #: its address
    who: str  #: the process and its user id, or address and port

    def sentence(self) -> str:
        """Describe the stranger for people."""
        return f"A stranger at {self.at} ({self.wire}) was cut off: {self.who}."


@dataclass(frozen=True)
class TurnedAway:
    """All of them together, as the document of `status -f json` has it."""

    count: int
    wires: Mapping[str, int] = field(default_factory=dict)  #: how many on each, as `Stranger.wire`
    since_s: float = 0.0  #: seconds since the first
    last: str = ""  #: the sentence about the last one


def summary(turned_away: TurnedAway | None) -> str:
    """Summarize in one line what was turned away; return "" where there was no stranger."""
    if turned_away is None or not turned_away.count:
        return ""
    many = turned_away.count
    wires = ", ".join(f"{wire}: {count}" for wire, count in turned_away.wires.items())
    minutes = max(1, round(turned_away.since_s / 60))
    ago = f"{minutes} min ago" if minutes < 120 else f"{round(minutes / 60)} h ago"
    who = "1 stranger was" if many == 1 else f"{many} strangers were"
    return f"{who} cut off from the pair's wires ({wires}), first {ago}. {turned_away.last}"

"""Connections of others to the wires of a pair that were cut off: values for status and explain.

`colo.peers` finds them, `supervisor.beside` keeps them. Counted since the supervisor began; the
journal names each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stranger:
    """Someone else than the peer was connected to a wire, and was cut off."""

    wire: str  #: in words: "the disks"
    at: str  #: its address
    who: str  #: the process and its user id, or address and port

    def sentence(self) -> str:
        """For people."""
        return f"A stranger at {self.at} ({self.wire}) was cut off: {self.who}."


@dataclass(frozen=True)
class TurnedAway:
    """All of them together, as the document of `status -f json` has it."""

    count: int
    wires: Mapping[str, int] = field(default_factory=dict)  #: how many on each, by its words
    since_s: float = 0.0  #: seconds since the first
    last: str = ""  #: the sentence about the last one


def told(document: Mapping[str, Any] | None) -> str:
    """Say in one line what was turned away; empty where nothing was.

    ``document`` is a `TurnedAway` as JSON has it, None as long as there was no stranger.
    """
    if not document or not document["count"]:
        return ""
    many = document["count"]
    wires = ", ".join(f"{wire}: {count}" for wire, count in document["wires"].items())
    minutes = max(1, round(document["since_s"] / 60))
    ago = f"{minutes} min ago" if minutes < 120 else f"{round(minutes / 60)} h ago"
    who = "1 stranger was" if many == 1 else f"{many} strangers were"
    return f"{who} cut off from the pair's wires ({wires}), first {ago}. {document['last']}"

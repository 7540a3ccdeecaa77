"""Merge the changes of state that were heard as events with those that the journal has.

Called by `chaos.evidence.chronicle`. A supervisor that is killed takes its connections with it, so
an event may have no listener, but its journal lies on disk.
Rules: a change that was heard has the time of its event. One that was not heard has the time of its
record. What the listener made from a view, when it could connect again, is left out where the
journal covers that time. Example: the record of 10.033 s and the event of 10.041 s are one change,
at 10.041 s; without the event it is one at 10.033 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.model.event import Kind, Record

#: An event comes after its journal record, usually by 2 to 36 ms; at most so long, seconds.
_EVENT_AFTER_S = 5.0
#: Stamps of events go over the wall clock: one may seem to come so long before its record.
_CLOCKS_DIFFER_S = 0.05


@dataclass(frozen=True)
class StateChange:
    """One change of the pair's protection; ``heard``: its time is that of the event."""

    at_s: float
    before: str
    after: str
    fact: str = ""
    reason: str = ""
    heard: bool = True


def merged(events: Iterable[ObservedEvent], journal: Iterable[Record]) -> list[StateChange]:
    """Return each change of state once, in time."""
    written = [
        _written(one) for one in journal if one.kind is Kind.STATE and one.before != one.after
    ]
    heard = [_heard(one) for one in events if one.name == "STATE_CHANGED"]
    found, last_s = list(written), -math.inf
    for one in heard:
        if one.fact:
            matches = [w for w in found if not w.heard and _same(w, one)]
            if matches:
                found.remove(max(matches, key=lambda w: w.at_s))
            found.append(one)
        # Without a fact the listener made it from a view: the real event had no listener.
        elif not any(last_s < w.at_s <= one.at_s for w in written):
            found.append(one)
        last_s = one.at_s
    return sorted(found, key=lambda one: one.at_s)


def _written(record: Record) -> StateChange:
    reason = str(record.data.get("reason", ""))
    return StateChange(record.mono_s, record.before, record.after, record.fact, reason, heard=False)


def _heard(event: ObservedEvent) -> StateChange:
    fact, reason = event.data.get("fact", ""), event.data.get("reason", "")
    return StateChange(event.at_s, event.data["before"], event.data["after"], fact, reason)


def _same(written: StateChange, heard: StateChange) -> bool:
    after_s = heard.at_s - written.at_s
    return (written.before, written.after) == (heard.before, heard.after) and (
        -_CLOCKS_DIFFER_S <= after_s <= _EVENT_AFTER_S
    )

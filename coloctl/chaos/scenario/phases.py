"""Find the moments at which a fault may be injected, from the events of a supervisor; pure.

Called by `chaos.run.engine` with each event. Example: a fault with ``when = "checkpoint"`` is
injected when the event that begins a checkpoint of a steady pair arrives. If the event that ends it
is stamped before the fault, the fault has missed its moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.chaos.scenario.values import When

#: Moments of some ten milliseconds.
SHORT = frozenset({When.CHECKPOINT, When.VMSTATE_LOAD})
#: A checkpoint lasts for some ten milliseconds: a fault that is later than this would miss it.
FRESH_S = 0.01
#: A pair is steady after so many complete checkpoints in COLO.
STEADY_CHECKPOINTS = 2
_STATES = {
    When.ALONE: "unprotected",
    When.RESYNC: "resync",
    When.MIGRATING: "migrating",
    When.FAILOVER: "failover",
    When.FAILED: "failed",
}


class Phases:
    """The phase of the pair, followed from event to event."""

    def __init__(self) -> None:
        self.protection = ""
        self.secondary = ""
        self._since_colo = 0

    def hear(self, event: ObservedEvent) -> frozenset[When]:
        """Return the moments that this event begins.

        Only the checkpoints of a steady pair count: before its first ones a node that is lost is
        a second fault.
        """
        data = event.data
        if event.name == "STATE_CHANGED":
            self.protection, self._since_colo = str(data["after"]), 0
            return frozenset(when for when, state in _STATES.items() if state == self.protection)
        if event.name == "CHECKPOINT":
            if data["phase"] == "begin":
                self.secondary = "b" if data["node"] == "a" else "a"
                return frozenset({When.CHECKPOINT}) if self.steady else frozenset()
            self._since_colo += 1
            return frozenset({When.STEADY}) if self.steady else frozenset()
        if self._is_load(event):
            return frozenset({When.VMSTATE_LOAD})
        return frozenset()

    def fault_injected(self) -> None:
        """Count checkpoints from zero: a pair with a new fault is not known to be steady."""
        self._since_colo = 0

    @property
    def steady(self) -> bool:
        """Return whether the pair is in COLO and has taken `STEADY_CHECKPOINTS` since."""
        return self.protection == "colo" and self._since_colo >= STEADY_CHECKPOINTS

    @property
    def over(self) -> bool:
        """Return whether no guest runs, and none will without an operator."""
        return self.protection in ("down", "failed")

    def now(self) -> frozenset[When]:
        """Return the moments that have begun and last."""
        states = {when for when, state in _STATES.items() if state == self.protection}
        return frozenset(states | ({When.STEADY} if self.steady else set()))

    @staticmethod
    def gone_by(
        when: When | None,
        event: ObservedEvent | None,
        now_s: float,
        heard: Sequence[ObservedEvent] = (),
    ) -> bool:
        """Return whether the moment is too short for a fault that is injected only now.

        It is over where one of ``heard``, the newest events, has ended it.
        """
        if when not in SHORT or event is None:
            return False
        return now_s - event.at_s > FRESH_S or bool(missed(when, event, now_s, heard))

    def _is_load(self, event: ObservedEvent) -> bool:
        return (
            event.name == "NODE_EVENT"
            and self.steady
            and event.data["event"] == "STOP"
            and event.data["node"] == self.secondary
        )


def missed(
    when: When | None, begin: ObservedEvent | None, at_s: float, heard: Sequence[ObservedEvent]
) -> str:
    """Return a sentence if a fault at ``at_s`` came after its phase, and nothing otherwise.

    ``begin`` is the event that began the phase; ``heard`` are all events of the run.
    """
    if when is None or begin is None:
        return ""
    for event in heard:
        if begin.at_s < event.at_s <= at_s and _ends(when, begin, event):
            late_ms = (at_s - event.at_s) * 1000
            return f"it came {late_ms:.1f} ms after the {when} was over"
    return ""


def _ends(when: When, begin: ObservedEvent, event: ObservedEvent) -> bool:
    """Return whether an event ends the phase that ``begin`` began."""
    if event.name == "STATE_CHANGED":
        return bool(event.data["after"] != _STATES.get(when, "colo"))
    if when is When.CHECKPOINT:
        return event.name == "CHECKPOINT" and bool(event.data["phase"] == "end")
    return bool(
        when is When.VMSTATE_LOAD
        and event.name == "NODE_EVENT"
        and (event.data["event"], event.data["node"]) == ("RESUME", begin.data["node"])
    )

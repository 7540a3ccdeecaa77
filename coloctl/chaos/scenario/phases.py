"""When a fault may fall, read from what a supervisor says; pure."""

from __future__ import annotations

from collections.abc import Sequence

from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.chaos.scenario.values import When

#: Moments of some ten milliseconds.
SHORT = frozenset({When.CHECKPOINT, When.VMSTATE_LOAD})
#: A checkpoint lasts for some ten milliseconds: who hears of it later than this would miss it.
FRESH_S = 0.01
#: A pair is steady after so many complete checkpoints in COLO.
STEADY_CHECKPOINTS = 2
_STATES = {
    When.RESYNC: "resync",
    When.MIGRATING: "migrating",
    When.FAILOVER: "failover",
    When.FAILED: "failed",
}


class Phases:
    """Where the pair is: told of every event, it says which moments have just come."""

    def __init__(self) -> None:
        self.protection = ""
        self.secondary = ""
        self._since_colo = 0

    def hear(self, said: ObservedEvent) -> frozenset[When]:
        """The moments that this event begins. Only a steady pair has checkpoints that count: before
        its first ones a node that is lost is a second fault.
        """
        data = said.data
        if said.name == "STATE_CHANGED":
            self.protection, self._since_colo = str(data["after"]), 0
            return frozenset(when for when, state in _STATES.items() if state == self.protection)
        if said.name == "CHECKPOINT":
            if data["phase"] == "begin":
                self.secondary = "b" if data["node"] == "a" else "a"
                return frozenset({When.CHECKPOINT}) if self.steady else frozenset()
            self._since_colo += 1
            return frozenset({When.STEADY}) if self.steady else frozenset()
        if self._is_load(said):
            return frozenset({When.VMSTATE_LOAD})
        return frozenset()

    def struck(self) -> None:
        """Something was broken: whether the pair is steady is to be seen anew."""
        self._since_colo = 0

    @property
    def steady(self) -> bool:
        return self.protection == "colo" and self._since_colo >= STEADY_CHECKPOINTS

    @property
    def over(self) -> bool:
        """No guest runs, and none will by itself."""
        return self.protection in ("down", "failed")

    def now(self) -> frozenset[When]:
        """The moments that last, and have come already."""
        states = {when for when, state in _STATES.items() if state == self.protection}
        return frozenset(states | ({When.STEADY} if self.steady else set()))

    @staticmethod
    def gone_by(when: When | None, said: ObservedEvent | None, now_s: float) -> bool:
        """The moment is too short for a blow that comes only now."""
        return when in SHORT and said is not None and now_s - said.at_s > FRESH_S

    def _is_load(self, said: ObservedEvent) -> bool:
        return (
            said.name == "NODE_EVENT"
            and self.steady
            and said.data["event"] == "STOP"
            and said.data["node"] == self.secondary
        )


def missed(
    when: When | None, begin: ObservedEvent | None, at_s: float, heard: Sequence[ObservedEvent]
) -> str:
    """A sentence when what was struck at ``at_s`` fell behind the phase it was meant for.

    ``begin`` is the event that began the phase, ``heard`` is everything that was said in the run.
    """
    if when is None or begin is None:
        return ""
    for said in heard:
        if begin.at_s < said.at_s <= at_s and _ends(when, begin, said):
            late_ms = (at_s - said.at_s) * 1000
            return f"it came {late_ms:.1f} ms after the {when} was over"
    return ""


def _ends(when: When, begin: ObservedEvent, said: ObservedEvent) -> bool:
    if said.name == "STATE_CHANGED":
        return bool(said.data["after"] != _STATES.get(when, "colo"))
    if when is When.CHECKPOINT:
        return said.name == "CHECKPOINT" and bool(said.data["phase"] == "end")
    return bool(
        when is When.VMSTATE_LOAD
        and said.name == "NODE_EVENT"
        and (said.data["event"], said.data["node"]) == ("RESUME", begin.data["node"])
    )

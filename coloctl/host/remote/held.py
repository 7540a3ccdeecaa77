"""Pass on what an agent reports about the things that it holds for this process.

Made by `host.remote.contact`, which gives it each beat and each push. `host.remote.process` and
`host.remote.watches` are registered here by the number of their hold. Invariant: a number means
what it meant in its own session. After `forget`, no report and no release of an older one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from coloctl.clock import Clock

#: So many beats without a report, and what was reported last is no longer believed.
STALE_BEATS = 6

#: Pushes about holds whose answer has not been read yet; more than this are not kept.
_EARLY_MAX = 256

#: The lists of a beat: each row begins with the number of its hold.
_LISTS = ("p", "l", "d")


class Thing(Protocol):
    """An object of this process that stands for a hold."""

    def reported(self, row: list[Any]) -> None:
        """Note its row of a beat, without the number."""
        ...

    def pushed(self, of: str, document: Mapping[str, Any]) -> None:
        """Note what was pushed about it."""
        ...

    def forgotten(self, why: str) -> None:
        """Note that the agent holds it no more."""
        ...


class HoldTable:
    """The holds of one session with an agent."""

    def __init__(
        self, push: Callable[[str, Mapping[str, Any]], None], beat_ms: int, clock: Clock
    ) -> None:
        self._push, self._clock = push, clock
        self._stale_s = STALE_BEATS * beat_ms / 1000
        self._things: dict[int, Thing] = {}
        self._early: list[tuple[int, str, Mapping[str, Any]]] = []
        self._beaten_s: float | None = None
        self.told_s = 0.0  #: when the newest report was made, by the agent's clock
        #: On a long way TCP delivers reports in bunches, up to a round trip apart.
        self._round_trip_s = 0.0

    @property
    def beaten_s(self) -> float | None:
        """The second of the newest report, None before the first of this session."""
        return self._beaten_s

    @property
    def stale(self) -> bool:
        """True while the agent has not reported for some beats, nor for a round trip."""
        late_s = max(self._stale_s, self._round_trip_s)
        return self._beaten_s is None or self._clock.now() - self._beaten_s > late_s

    def add(self, hold: int, thing: Thing) -> None:
        """Report to ``thing`` from now on, beginning with what came before the answer was read."""
        self._things[hold] = thing
        early = [one for one in self._early if one[0] == hold]
        self._early = [one for one in self._early if one[0] != hold]
        for _, of, document in early:
            thing.pushed(of, document)

    def push(self, thing: Thing, hold: int, of: str, document: Mapping[str, Any]) -> None:
        """Send something about a hold, where it is still that of ``thing``."""
        if self._things.get(hold) is thing:
            self._push(of, {"hold": hold, **document})

    def release(self, thing: Thing, hold: int) -> None:
        """Let the agent release the hold of ``thing``; harmless where it was forgotten."""
        self.push(thing, hold, "release", {})
        if self._things.get(hold) is thing:
            del self._things[hold]

    def beaten(self, document: Mapping[str, Any], round_trip_s: float = 0.0) -> None:
        """Pass on the rows of a beat, which came on a way of such a round trip."""
        self._beaten_s, self._round_trip_s = self._clock.now(), round_trip_s
        if isinstance(told_s := document.get("t"), int | float):
            self.told_s = float(told_s)
        for name in _LISTS:
            for hold, *row in document.get(name) or ():
                if (thing := self._things.get(hold)) is not None:
                    thing.reported(row)

    def pushed(self, of: str, document: Mapping[str, Any]) -> None:
        """Pass on a push of the agent."""
        hold = int(document["hold"])
        if (thing := self._things.get(hold)) is not None:
            thing.pushed(of, document)
        elif len(self._early) < _EARLY_MAX:
            self._early.append((hold, of, document))

    def forget(self, why: str) -> None:
        """Forget all holds, because the agent has."""
        things, self._things = list(self._things.values()), {}
        self._early.clear()
        self._beaten_s = None
        for thing in things:
            thing.forgotten(why)

"""The faults of one run, dealt when their time and their moment have come, and healed always."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from coloctl.chaos.evidence.listener import EventListener
from coloctl.chaos.evidence.records import FaultRecord, ObservedEvent
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import Blow, Ground
from coloctl.chaos.scenario import phases
from coloctl.chaos.scenario.phases import Phases
from coloctl.chaos.scenario.values import Planned, When
from coloctl.errors import ColoctlError, DeadlineMissed

#: A moment that has not come so long after its time never will, seconds: a pair that lost a node
#: is protected again within seconds, and takes a checkpoint every second or so.
MOMENT_S = 150.0
#: The same for a pair that has come to its end, and leaves it only for an operator, seconds.
OVER_S = 20.0
#: How long to sleep at most while a time is waited for, seconds.
_TICK_S = 0.05


@dataclass
class _Dealt:
    """A fault that was struck, as it is remembered until the end."""

    struck: FaultRecord
    blow: Blow
    begin: ObservedEvent | None
    heal_at_s: float | None
    healed: bool = False


@dataclass
class _Waiting:
    """A fault that is still to come; ``armed_s`` is when it began to wait for its moment."""

    fault: Planned
    armed_s: float | None = None


Tell = Callable[[str], None]


@dataclass
class Strikes:
    """Deals a plan; leaving the ``with`` block heals whatever is not healed yet."""

    ground: Ground
    ear: EventListener
    tell: Tell
    phases: Phases = field(default_factory=Phases)
    _dealt: list[_Dealt] = field(default_factory=list)
    #: The pair between two checkpoints: to ask for it in one would take as long as that lasts.
    _seen: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal_all()

    def interpret(self, plan: tuple[Planned, ...], steady_s: float) -> None:
        """Every fault of the plan was dealt, and those that last for a time are healed.

        Raises `DeadlineMissed` when the moment of one never came, and what a fault raises.
        """
        waiting = [_Waiting(fault) for fault in plan]
        while waiting or any(one.heal_at_s is not None and not one.healed for one in self._dealt):
            self._heal_due()
            self._strike_due(waiting, steady_s, self.phases.now(), None)
            said = self.ear.next(_TICK_S)
            if said is not None:
                moments = self.phases.hear(said)
                self._look_ahead(waiting, said)
                self._strike_due(waiting, steady_s, moments, said)

    def hear_all(self) -> None:
        """The phases know of everything that was said so far."""
        while (said := self.ear.next(0)) is not None:
            self.phases.hear(said)

    def heal_all(self) -> None:
        """Nothing is broken any more, except what cannot be mended."""
        for dealt in reversed(self._dealt):
            with contextlib.suppress(ColoctlError, OSError):
                self._heal(dealt)

    def struck(self) -> tuple[FaultRecord, ...]:
        """What was dealt, with what is known of it now."""
        return tuple(
            replace(
                one.struck,
                note=": ".join(filter(None, (one.blow.note, one.blow.outcome()))),
                missed=one.blow.missed
                or phases.missed(one.struck.fault.when, one.begin, one.struck.at_s, self.ear.heard),
            )
            for one in self._dealt
        )

    def _strike_due(
        self,
        waiting: list[_Waiting],
        steady_s: float,
        moments: frozenset[When],
        said: ObservedEvent | None,
    ) -> None:
        for one in list(waiting):
            if not self._armed(one, steady_s):
                continue
            late = self.phases.gone_by(one.fault.when, said, time.monotonic())
            if one.fault.when is None or (one.fault.when in moments and not late):
                waiting.remove(one)
                self._strike(one.fault, said if one.fault.when in moments else None)
                return  # what was said before the blow begins no moment after it
            assert one.armed_s is not None
            patience_s = OVER_S if self.phases.over else MOMENT_S
            if time.monotonic() > one.armed_s + patience_s:
                raise DeadlineMissed(
                    f"The fault {one.fault.name} never fell: no {one.fault.when} came within "
                    f"{patience_s:.0f} s; the pair is {self.phases.protection or 'silent'}."
                )

    def _look_ahead(self, waiting: list[_Waiting], said: ObservedEvent) -> None:
        """Whoever waits for a checkpoint knows who is who when it comes."""
        if said.name in ("STATE_CHANGED", "NODE_DEAD"):
            self._seen = None
        short = [one for one in waiting if one.fault.when in phases.SHORT]
        if When.STEADY in self.phases.now() and self._seen is None and short:
            self._seen = self.ear.view()

    def _armed(self, one: _Waiting, steady_s: float) -> bool:
        if one.armed_s is None:
            base = steady_s
            if one.fault.after:
                times = [
                    d.struck.at_s for d in self._dealt if d.struck.fault.name == one.fault.after
                ]
                if not times:
                    return False
                base = times[0]
            if time.monotonic() < base + one.fault.at_s:
                return False
            one.armed_s = time.monotonic()
        return True

    def _strike(self, fault: Planned, begin: ObservedEvent | None) -> None:
        seen, self._seen = self._seen, None
        ground = self.ground
        if seen is not None and fault.when in phases.SHORT:
            ground = replace(ground, view=lambda: seen)
        blow = FAULTS[fault.kind].strike(ground, fault, self.ear.ask)
        self.phases.struck()
        struck = FaultRecord(fault, blow.at_s, blow.nodes, blow.role)
        heal_at_s = None if fault.duration_s is None else blow.at_s + fault.duration_s
        self._dealt.append(_Dealt(struck, blow, begin, heal_at_s))
        where = f" ({', '.join(blow.nodes)})" if blow.nodes else ""
        self.tell(f"{fault.name}: {fault.kind} {fault.target}{where}")

    def _heal_due(self) -> None:
        for one in self._dealt:
            if not one.healed and one.heal_at_s is not None and time.monotonic() >= one.heal_at_s:
                self._heal(one)
                self.tell(f"{one.struck.fault.name}: healed")

    def _heal(self, one: _Dealt) -> None:
        if one.healed:
            return
        one.blow.heal()
        one.healed = True
        if FAULTS[one.struck.fault.kind].lasting:
            one.struck = replace(one.struck, healed_s=time.monotonic())

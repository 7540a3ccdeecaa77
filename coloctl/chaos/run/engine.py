"""Inject the faults of one run when their time and their moment have come, and heal them always.

Called by `chaos.run.runner` after the steady state; calls the kinds of `chaos.faults`. A fault
waits for its time first, and then for its moment, which `chaos.scenario.phases` reads from the
events.

Invariant: each fault that was injected is healed when the run ends, however it ends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from coloctl.chaos.evidence.listener import EventListener
from coloctl.chaos.evidence.records import FaultRecord, ObservedEvent
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, PairUnderTest, build
from coloctl.chaos.scenario import phases
from coloctl.chaos.scenario.phases import Phases
from coloctl.chaos.scenario.values import ScheduledFault, When
from coloctl.errors import ColoctlError, DeadlineMissed
from coloctl.model.view import PairView

#: A moment that has not come so long after its time never will, seconds: a pair that lost a node
#: is protected again within seconds, and takes a checkpoint every second or so.
MOMENT_S = 150.0
#: The same for a pair in an end state, which only an operator's command leaves, seconds.
OVER_S = 20.0
#: How long to sleep at most while a time is waited for, seconds.
_TICK_S = 0.05


Tell = Callable[[str], None]


@dataclass
class _Active:
    """A fault whose turn has come, as it is kept until the end of the run.

    ``armed_s`` is when it began to wait for its moment; ``begin`` is the event that began that.
    """

    scheduled: ScheduledFault
    armed_s: float | None = None
    fault: Fault[Any] | None = None
    injected: Injected | None = None
    missed: str = ""
    begin: ObservedEvent | None = None
    healed_s: float | None = None

    @property
    def heal_at_s(self) -> float | None:
        """The time of its healing; None for one healed at the end, or healed already."""
        lasts_s = self.scheduled.duration_s
        if self.injected is None or lasts_s is None or self.healed_s is not None:
            return None
        return self.injected.at_s + lasts_s


@dataclass
class Engine:
    """Injects a plan; leaving the ``with`` block heals each fault that is not healed yet."""

    pair: PairUnderTest
    listener: EventListener
    tell: Tell
    phases: Phases = field(default_factory=Phases)
    _active: list[_Active] = field(default_factory=list)
    #: The pair between two checkpoints: to ask for it in one would take as long as that lasts.
    _seen: PairView | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal_all()
        for one in self._active:
            if one.fault is not None:
                one.fault.close()

    def interpret(self, plan: tuple[ScheduledFault, ...], steady_s: float) -> None:
        """Inject every fault of the plan, and heal those that last for a time.

        Raises `DeadlineMissed` when the moment of one never came, and the error of a fault.
        """
        waiting = [_Active(fault) for fault in plan]
        while waiting or any(one.heal_at_s is not None for one in self._active):
            self._heal_due()
            self._inject_due(waiting, steady_s, self.phases.now(), None)
            event = self.listener.next(_TICK_S)
            if event is not None:
                moments = self.phases.hear(event)
                self._look_ahead(waiting, event)
                self._inject_due(waiting, steady_s, moments, event)

    def hear_all(self) -> None:
        """Take all events that have come so far into the phases."""
        while (event := self.listener.next(0)) is not None:
            self.phases.hear(event)

    def heal_all(self) -> None:
        """Heal each fault that is not healed yet, the latest first; errors end none of it."""
        for one in reversed(self._active):
            with contextlib.suppress(ColoctlError, OSError):
                self._heal(one)

    def records(self) -> tuple[FaultRecord, ...]:
        """Return the faults that were injected or missed, as far as they are known now."""
        return tuple(self._records())

    def _records(self) -> Iterator[FaultRecord]:
        for one in self._active:
            fault, done = one.fault, one.injected
            assert fault is not None and done is not None
            result = fault.result()
            late = phases.missed(one.scheduled.when, one.begin, done.at_s, self.listener.heard)
            yield FaultRecord(
                one.scheduled,
                done.at_s,
                done.nodes,
                done.role,
                healed_s=one.healed_s if fault.lasting else None,
                missed=one.missed or late,
                note=": ".join(filter(None, (done.note, str(result)))),
                result=result,
                lived_on=fault.lived_on(),
            )

    def _inject_due(
        self,
        waiting: list[_Active],
        steady_s: float,
        moments: frozenset[When],
        event: ObservedEvent | None,
    ) -> None:
        for one in list(waiting):
            if not self._armed(one, steady_s):
                continue
            when = one.scheduled.when
            late = self.phases.gone_by(when, event, time.monotonic())
            if when is None or (when in moments and not late):
                waiting.remove(one)
                one.begin = event if when in moments else None
                self._inject(one)
                return  # an event from before the fault begins no moment after it
            assert one.armed_s is not None
            patience_s = OVER_S if self.phases.over else MOMENT_S
            if time.monotonic() > one.armed_s + patience_s:
                raise DeadlineMissed(
                    f"The fault {one.scheduled.name} never fell: no {when} came within "
                    f"{patience_s:.0f} s; the pair is {self.phases.protection or 'silent'}."
                )

    def _look_ahead(self, waiting: list[_Active], event: ObservedEvent) -> None:
        """Look at the pair before a checkpoint that a fault waits for: roles are known then."""
        if event.name in ("STATE_CHANGED", "NODE_DEAD"):
            self._seen = None
        short = [one for one in waiting if one.scheduled.when in phases.SHORT]
        if When.STEADY in self.phases.now() and self._seen is None and short:
            self._seen = self.listener.view()

    def _armed(self, one: _Active, steady_s: float) -> bool:
        """Return whether the time of a fault has come; note when that was."""
        if one.armed_s is None:
            base, after = steady_s, one.scheduled.after
            if after:
                times = [
                    other.injected.at_s
                    for other in self._active
                    if other.scheduled.name == after and other.injected
                ]
                if not times:
                    return False
                base = times[0]
            if time.monotonic() < base + one.scheduled.at_s:
                return False
            one.armed_s = time.monotonic()
        return True

    def _inject(self, one: _Active) -> None:
        scheduled = one.scheduled
        one.fault = build(
            FAULTS, self._pair_for(scheduled), scheduled.kind, scheduled.target, scheduled.params
        )
        try:
            one.injected = one.fault.inject()
        except NothingToHit as nothing:
            one.injected, one.missed = Injected(time.monotonic()), nothing.message
        self.phases.fault_injected()
        self._active.append(one)
        nodes = one.injected.nodes
        where = f" ({', '.join(nodes)})" if nodes else ""
        self.tell(f"{scheduled.name}: {scheduled.kind} {scheduled.target}{where}")

    def _pair_for(self, scheduled: ScheduledFault) -> PairUnderTest:
        """Return the pair for a fault; one in a short moment gets the view from before that."""
        seen, self._seen = self._seen, None
        if seen is None or scheduled.when not in phases.SHORT:
            return self.pair
        once = iter([seen])
        return replace(self.pair, view=lambda: next(once, None) or self.pair.view())

    def _heal_due(self) -> None:
        for one in self._active:
            if one.heal_at_s is not None and time.monotonic() >= one.heal_at_s:
                self._heal(one)
                self.tell(f"{one.scheduled.name}: healed")

    def _heal(self, one: _Active) -> None:
        if one.healed_s is None and one.fault is not None:
            one.fault.heal()
            one.healed_s = time.monotonic()

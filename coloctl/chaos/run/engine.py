"""Inject the faults of one run when their time and their moment have come, and heal them always.

Called by `chaos.run.runner` after the steady state; calls the kinds of `chaos.faults`. A fault
waits for its time first, and then for its moment, which `chaos.scenario.phases` reads from the
events.

Invariant: each fault that was injected is healed when the run ends, however it ends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from coloctl.chaos.evidence.listener import EventListener
from coloctl.chaos.evidence.records import FaultRecord, ObservedEvent
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, PairUnderTest, build
from coloctl.chaos.scenario import phases
from coloctl.chaos.scenario.phases import Phases
from coloctl.chaos.scenario.values import EARLY, ScheduledFault, When, Workload
from coloctl.errors import ColoctlError, DeadlineMissed
from coloctl.model.view import PairView

#: A moment that has not come so long after its time never will, seconds: a pair that lost a node
#: is protected again within seconds, and takes a checkpoint every second or so.
MOMENT_WAIT_S = 150.0
#: The same for a pair in an end state, which only an operator's command leaves, seconds.
OVER_WAIT_S = 20.0
#: How long to sleep at most while a time is waited for, seconds.
_TICK_S = 0.05
#: Of the events that came while one was handled, so many are looked at.
_NEWEST = 20


Tell = Callable[[str], None]


@dataclass
class _Waiting:
    """A fault, or clients that come in mid-run, until its time and its moment have come.

    ``act`` gets the event that began the moment, and returns whether the pair is another one now.
    """

    otherwise: str  #: the begin of a sentence about a moment that never came
    act: Callable[[ObservedEvent | None], bool]
    when: When | None
    after: str
    at_s: float = 0.0
    then_s: float = 0.0
    armed_s: float | None = None  #: when it began to wait for its moment
    begin: ObservedEvent | None = None
    due_s: float | None = None  #: known once the moment has come


@dataclass
class _Active:
    """A fault that was injected, or had nothing to hit, as it is kept until the end of the run."""

    scheduled: ScheduledFault
    fault: Fault[Any]
    injected: Injected
    begin: ObservedEvent | None  #: the event that began its moment
    missed: str = ""
    healed_s: float | None = None

    @property
    def heal_at_s(self) -> float | None:
        """The time of its healing; None for one healed at the end, or healed already."""
        lasts_s = self.scheduled.duration_s
        return None if lasts_s is None or self.healed_s else self.injected.at_s + lasts_s


@dataclass
class Engine:
    """Injects a plan; leaving the ``with`` block heals each fault that is not healed yet."""

    pair: PairUnderTest
    listener: EventListener
    tell: Tell
    start: Callable[[Workload], None] = lambda _: None  #: starts clients that come in mid-run
    phases: Phases = field(default_factory=Phases)
    _active: list[_Active] = field(default_factory=list)
    #: The pair between two checkpoints: to ask for it in one would take as long as that lasts.
    _seen: PairView | None = None
    #: The numbers of its QEMUs outside of their machines: to look for one takes some milliseconds.
    _outer: Mapping[tuple[str, int], int | None] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal_all()
        for one in self._active:
            one.fault.close()

    def interpret(
        self,
        plan: tuple[ScheduledFault, ...],
        steady_s: float,
        workloads: tuple[Workload, ...] = (),
    ) -> None:
        """Inject every fault of the plan, and heal those that last for a time.

        Of the workloads, those that begin in mid-run are started. Raises `DeadlineMissed` when the
        moment of a fault or a workload never came, and the error of a fault.
        """
        waiting = [
            _Waiting(
                f"The clients {one.name} never came",
                partial(self._come, one),
                When(one.begins),
                one.after,
            )
            for one in workloads
            if one.begins not in EARLY
        ]
        for fault in plan:
            inject = partial(self._inject, fault)
            times = fault.at_s, fault.then_s
            sentence = f"The fault {fault.name} never fell"
            waiting.append(_Waiting(sentence, inject, fault.when, fault.after, *times))
        while waiting or any(one.heal_at_s is not None for one in self._active):
            self._heal_due()
            self._act_due(waiting, steady_s, self.phases.now(), None)
            event = self.listener.next(self._wait_s(waiting, steady_s))
            if event is not None:
                moments = self.phases.hear(event)
                self._look_ahead(waiting, event)
                self._act_due(waiting, steady_s, moments, event)

    def _come(self, work: Workload, _: ObservedEvent | None) -> bool:
        self.start(work)
        self.tell(f"{work.name}: {work.clients} clients come")
        return False

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
        return tuple(map(self._record, self._active))

    def _record(self, one: _Active) -> FaultRecord:
        done, result = one.injected, one.fault.result()
        late = phases.missed(one.scheduled.when, one.begin, done.at_s, self.listener.heard)
        return FaultRecord(
            one.scheduled,
            done.at_s,
            done.nodes,
            done.role,
            healed_s=one.healed_s if one.fault.lasting else None,
            missed=one.missed or late,
            note=": ".join(filter(None, (done.note, str(result)))),
            result=result,
            lived_on=one.fault.lived_on(),
        )

    def _act_due(
        self,
        waiting: list[_Waiting],
        steady_s: float,
        moments: frozenset[When],
        event: ObservedEvent | None,
    ) -> None:
        """Act on what waits and is due; ``event`` has begun the moments, or they last."""
        for one in list(waiting):
            now_s = time.monotonic()
            if one.armed_s is None:
                time_s = self._time_s(one, steady_s)
                one.armed_s = now_s if time_s is not None and time_s <= now_s else None
            if one.armed_s is not None and one.due_s is None:
                newest = self.listener.heard[-_NEWEST:]
                late = self.phases.gone_by(one.when, event, now_s, newest)
                if one.when is None or (one.when in moments and not late):
                    one.begin = event or ObservedEvent(now_s, "", {})
                    one.due_s = now_s + one.then_s
                else:
                    self._give_up(one, now_s, one.armed_s)
            if one.due_s is not None and one.due_s <= now_s:
                waiting.remove(one)
                if one.act(one.begin):
                    return  # an event from before the fault begins no moment after it

    def _give_up(self, one: _Waiting, now_s: float, armed_s: float) -> None:
        """Raise `DeadlineMissed` for a moment that will not come any more."""
        wait_s = OVER_WAIT_S if self.phases.over else MOMENT_WAIT_S
        if now_s > armed_s + wait_s:
            raise DeadlineMissed(
                f"{one.otherwise}: no {one.when} came within "
                f"{wait_s:.0f} s; the pair is {self.phases.protection or 'silent'}."
            )

    def _look_ahead(self, waiting: list[_Waiting], event: ObservedEvent) -> None:
        """Look at the pair before a checkpoint that a fault waits for: roles are known then."""
        if event.name in ("STATE_CHANGED", "NODE_DEAD"):
            self._seen = None
        short = [one for one in waiting if one.when in phases.SHORT]
        if When.STEADY in self.phases.now() and self._seen is None and short:
            self._seen = self.listener.view()
            self._outer = self.pair.numbers(self._seen)

    def _time_s(self, one: _Waiting, steady_s: float) -> float | None:
        """Return the time of a fault; None before the fault that it waits for."""
        if not one.after:
            return steady_s + one.at_s
        before = (active for active in self._active if active.scheduled.name == one.after)
        return next((active.injected.at_s + one.at_s for active in before), None)

    def _wait_s(self, waiting: list[_Waiting], steady_s: float) -> float:
        """Return how long to wait for an event: until the next time that is known, at most."""
        times = [one.heal_at_s for one in self._active]
        for one in waiting:
            times.append(one.due_s if one.armed_s else self._time_s(one, steady_s))
        now_s = time.monotonic()
        return max(0.0, min([_TICK_S, *(at_s - now_s for at_s in times if at_s is not None)]))

    def _inject(self, scheduled: ScheduledFault, begin: ObservedEvent | None) -> bool:
        pair, missed = self._pair_for(scheduled), ""
        fault = build(FAULTS, pair, scheduled.kind, scheduled.target, scheduled.params)
        try:
            injected = fault.inject()
        except NothingToHit as nothing:
            injected, missed = Injected(time.monotonic()), nothing.message
        self.phases.fault_injected()
        self._active.append(_Active(scheduled, fault, injected, begin, missed))
        where = f" ({', '.join(injected.nodes)})" if injected.nodes else ""
        self.tell(f"{scheduled.name}: {scheduled.kind} {scheduled.target}{where}")
        return True

    def _pair_for(self, scheduled: ScheduledFault) -> PairUnderTest:
        """Return the pair for a fault; one in a short moment gets the view from before that."""
        seen, self._seen = self._seen, None
        if seen is None or scheduled.when not in phases.SHORT:
            return self.pair
        once = iter([seen])
        return replace(
            self.pair, view=lambda: next(once, None) or self.pair.view(), outer=self._outer
        )

    def _heal_due(self) -> None:
        for one in self._active:
            if one.heal_at_s is not None and time.monotonic() >= one.heal_at_s:
                self._heal(one)
                self.tell(f"{one.scheduled.name}: healed")

    def _heal(self, one: _Active) -> None:
        if one.healed_s is None:
            one.fault.heal()
            one.healed_s = time.monotonic()

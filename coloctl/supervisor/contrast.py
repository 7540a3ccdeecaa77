"""Compare what both guests of a pair in COLO do, and keep the result in `Beside.contrast`.

Called by `supervisor.loop` at every event of either QEMU and once a second. Compared are QEMU's
events of the guests, both consoles, the scheduler's record of the threads that are the guests'
processors (`host.base.Process.worked`), and checkpoints that came early. `ha.divergence` decides
what follows.

Invariants: no evidence of an earlier secondary counts against the present one. A proven divergence
holds for the life of that secondary, also when a checkpoint has made its guest equal again. Nothing
counts that is seen of one guest while the machine of either is out of reach, or reports late.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import replace

from coloctl.errors import HostOutOfReach, MonitorError
from coloctl.ha.divergence import next_unmatched, proofs
from coloctl.ha.processors import SUSPECT_UNMATCHED
from coloctl.ha.unmatched import GUEST_EVENTS
from coloctl.model import event as records
from coloctl.model.event import Kind
from coloctl.model.observation import Contrast
from coloctl.model.pair import Role
from coloctl.model.view import Presence
from coloctl.qmp import command as qmp
from coloctl.qmp.session import Event
from coloctl.supervisor import cpu_sampling
from coloctl.supervisor.compared import ComparedGuests
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: How often the consoles are read at most, by checkpoints, seconds.
READ_S = 0.1
#: The time until an undecided sign is decided, and how often it is asked, seconds.
SETTLE_S, SETTLE_PERIOD_S = 5.0, 0.25


class Contrasting:
    """Keeps the contrast of one pair; ``spawn`` makes tasks."""

    def __init__(self, state: PairState, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self.state = state
        self._spawn = spawn
        self._session: ComparedGuests | None = None
        self._looking: asyncio.Task[None] | None = None
        self._reading, self._read_s = False, -math.inf

    def hear(self, seat: Seat, event: Event) -> None:
        """Note what an event of QEMU shows about its guest.

        The statistics have counted it already.
        """
        session = self._session
        if session is None or seat.vm not in session.vms:
            return
        now_s = self.state.clock.now()
        of_primary = seat is session.primary
        if (deed := GUEST_EVENTS.get(event.name)) is not None:
            if event.data.get("action") == "ignore":  # memory of the host that no guest used
                return
            if of_primary:
                session.deeds.primary(deed, now_s)
            else:
                session.deeds.secondary(deed, session.moment(now_s))
        elif event.name == "STOP" and of_primary:
            self._count(session)
            self._conclude(session)
        elif event.name == "STOP":  # the secondary stops first, and both have run up to here
            self._weigh(session)
            if now_s - self._read_s >= READ_S:
                self._read_s = now_s
                self._spawn(self._read(session))
        elif event.name == "RESUME" and of_primary:
            session.weigh(now_s)
            self._conclude(session)

    async def tick(self) -> None:
        """Compare what both guests did since the last call; about once a second."""
        session = self._attend()
        if session is None:
            return
        if not session.watches_processors:
            await self._watch_processors(session)
        await self._read(session)
        self.sample()
        self._look(session, cpu_sampling.BRIEFLY)

    def sample(self) -> None:
        """Sample the processors, more often than `tick`, so that a short spin is not averaged away.

        Not while a checkpoint holds a guest: its duration is known at its end only.
        """
        session = self._session
        if session is None or session is not self._attend():
            return
        if not any(seat.stats.stopped_at for seat in (session.primary, session.secondary)):
            self._weigh(session)

    async def _read(self, session: ComparedGuests) -> None:
        """Compare the consoles, unless that is under way or a machine cannot be asked."""
        if self._reading or session.unseen():
            return
        self._reading = True
        try:
            await session.read(session.moment(self.state.clock.now()))
        except HostOutOfReach as error:
            log.info("The consoles could not be compared: %s", error.message)
        finally:
            self._reading = False
        self._conclude(session)

    async def settle(self) -> None:
        """Wait until no sign that was observed is undecided any more, `SETTLE_S` at most."""
        clock = self.state.clock
        until_s = clock.now() + SETTLE_S
        while clock.now() < until_s:
            await self.tick()
            if self._session is None or not self._session.undecided():
                return
            await clock.sleep(SETTLE_PERIOD_S)

    def end(self) -> None:
        """Cancel the sampling under way."""
        if self._looking is not None:
            self._looking.cancel()

    # -- sessions

    def _attend(self) -> ComparedGuests | None:
        """Return the session of the QEMUs in the seats now; a new one where they are others."""
        state = self.state
        primary, secondary = state.seat_of(Role.PRIMARY), state.seat_of(Role.SECONDARY)
        there = [seat for seat in (primary, secondary) if seat is not None and _in_colo(seat)]
        session = self._session
        if primary is None or secondary is None or len(there) < 2:
            if secondary is None or secondary.vm is None:
                self._leave()
                state.beside.contrast = Contrast()
            return None
        if session is None or session.vms != (primary.vm, secondary.vm):
            if not secondary.diverged:
                state.beside.contrast, state.beside.compared = Contrast(), secondary.vm
            if state.beside.unlike_of is not secondary.vm:  # it may have been compared already
                state.beside.unlike = ()
            self._leave()
            self._session = session = ComparedGuests(primary, secondary, state.clock)
        return session

    def _leave(self) -> None:
        """End the session, if there is one."""
        if self._session is not None:
            self._session.end()
            self._session = None

    async def _watch_processors(self, session: ComparedGuests) -> None:
        """Ask both QEMUs which of their threads are processors, and watch these.

        Asked again where they fail.
        """
        try:
            found = [await vm.execute(qmp.query_cpus_fast()) for vm in session.vms]
            threads = [[int(cpu["thread-id"]) for cpu in cpus] for cpus in found]
        except (MonitorError, KeyError, TypeError, ValueError):
            return
        for vm, own in zip(session.vms, threads, strict=True):
            vm.process.watch(threads=own)
        session.watches_processors = True

    # -- signs

    def _count(self, session: ComparedGuests) -> None:
        """Count a checkpoint that came early because the secondary sent no matching packet."""
        period_s = session.primary.stats.last_period_s
        asked = self.state.act or self.state.beside.asking  # it was no answer that forced it
        if period_s is None or asked:
            return
        session.unmatched = next_unmatched(
            session.unmatched,
            period_ms=period_s * 1000,
            delay_ms=self.state.period_ms(),
            timeout_ms=self.state.spec.checkpoint.compare_timeout_ms,
        )

    def _weigh(self, session: ComparedGuests) -> None:
        """Compare the processors' load.

        Sample closer where the secondary's behave otherwise.
        """
        now_s = self.state.clock.now()
        session.weigh(now_s)
        session.feed_load(now_s)
        if session.unmatched >= SUSPECT_UNMATCHED:
            self._look(session, cpu_sampling.CLOSELY)
        elif session.load.uneven:
            self._look(session, cpu_sampling.BRIEFLY)
        self._conclude(session)

    def _look(self, session: ComparedGuests, patience: int) -> None:
        """Sample the registers, unless that is under way or shows nothing now."""
        idle = self._looking is None or self._looking.done()
        eventful = session.deeds.eventful(self.state.clock.now())
        seen = session.watches_processors and not session.unseen()
        if idle and not eventful and not session.deaf and seen:
            self._looking = self._spawn(self._look_at(session, patience))

    async def _look_at(self, session: ComparedGuests, patience: int) -> None:
        """Find processors of the secondary alone that have stopped to take interrupts."""
        if await session.looking.deaf(patience):
            session.deaf = True
            self._conclude(session)

    def _conclude(self, session: ComparedGuests) -> None:
        """Show the contrast in the state; journal a proof, which is final."""
        state, secondary = self.state, session.secondary
        if (
            session is not self._session
            or secondary.diverged
            or secondary.vm is not session.vms[1]
            or secondary.retired
        ):
            return
        state.beside.contrast = replace(session.contrast(), disks=state.beside.unlike)
        names = session.primary.name, secondary.name
        if evidence := proofs(state.beside.contrast, *names):
            secondary.diverge()
            state.beside.diverged(state.clock.now())
            data = {records.MISSED: records.DIVERGENCE, "evidence": list(evidence)}
            state.record(Kind.OBSERVATION, node=secondary.name, data=data)


def _in_colo(seat: Seat) -> bool:
    alive = seat.view.presence is not Presence.DEAD
    return seat.vm is not None and seat.in_colo and alive and not seat.retired

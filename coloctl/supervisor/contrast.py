"""Compare what both guests of a pair in COLO do, and keep the result in `Beside.contrast`.

Called by `supervisor.loop` at every event of either QEMU and once a second. Compared are QEMU's
events of the guests, both consoles, the scheduler's record of the threads that are the guests'
processors (`host.threads`), and checkpoints that came early. `ha.divergence` decides what follows.

Invariants: no evidence of an earlier secondary counts against the present one. A proven divergence
holds for the life of that secondary, also when a checkpoint has made its guest equal again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

from coloctl.clock import Clock
from coloctl.errors import MonitorError
from coloctl.ha.divergence import next_unmatched, proofs
from coloctl.ha.processors import SUSPECT_UNMATCHED, ProcessorLoad, Worked
from coloctl.ha.unmatched import GUEST_EVENTS, Moment, UnmatchedEvents, UnmatchedLines
from coloctl.host import threads
from coloctl.model import event as records
from coloctl.model.event import Kind
from coloctl.model.observation import Contrast
from coloctl.model.pair import Role
from coloctl.model.view import Presence
from coloctl.qmp import command as qmp
from coloctl.qmp.session import Event
from coloctl.supervisor import cpu_sampling
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

#: Bytes read of one console in one second; a guest that writes more is not followed.
CONSOLE_BYTES = 256 * 1024
#: Bytes read of the primary's console from before the session.
BEFORE_BYTES = 1 << 20
#: How often the consoles are read at most, by checkpoints, seconds.
READ_S = 0.1
#: The time until an undecided sign is decided, and how often it is asked, seconds.
SETTLE_S, SETTLE_PERIOD_S = 5.0, 0.25


class _Follower:
    """Reads whole lines of one console as they come."""

    def __init__(self, vm: VM, offset: int) -> None:
        self._vm, self._offset, self._rest = vm, offset, b""

    async def read(self) -> tuple[list[bytes], bool]:
        """Return the lines since the last call, and whether some were passed over.

        Raises `HostOutOfReach`.
        """
        piece = await self._vm.console.read(self._offset, CONSOLE_BYTES)
        data, skipped = piece.data, piece.begin > self._offset
        self._offset = piece.begin + len(data)
        if len(data) == CONSOLE_BYTES and piece.size > self._offset:
            self._offset, skipped = piece.size, True
        *lines, rest = ((b"" if skipped else self._rest) + data).splitlines(keepends=True) or [b""]
        if rest.endswith((b"\n", b"\r")):
            lines, rest = [*lines, rest], b""
        self._rest = b"" if skipped or len(rest) > CONSOLE_BYTES else rest
        return lines, skipped


class _Session:
    """One secondary beside one primary, from their entry into COLO on."""

    def __init__(self, primary: Seat, secondary: Seat, clock: Clock) -> None:
        assert primary.vm is not None and secondary.vm is not None
        self.primary, self.secondary = primary, secondary
        self.vms = primary.vm, secondary.vm
        self.looking = cpu_sampling.CpuSampling(primary, secondary, clock)
        self.deeds, self.load = UnmatchedEvents(), ProcessorLoad()
        self.unmatched, self.deaf = 0, False
        self.processors: tuple[list[int], list[int]] | None = None
        self._words = UnmatchedLines()  # touched by `read` alone, of which one runs
        self._read_before = False
        self._consoles = tuple(_Follower(vm, vm.process.console_bytes()) for vm in self.vms)
        self._damage: tuple[str, ...] = ()
        self._others, self._unmet = 0, False

    def moment(self, at_s: float) -> Moment:
        """Return that moment by the clock, by the checkpoints and by the primary's processors."""
        stats, free_s = self.primary.stats, None
        if self.processors is not None:
            worked = threads.worked(self.vms[0].process.identity.pid, self.processors[0])
            if worked:
                free_s = at_s - stats.held_s - max(waited for _, waited in worked)
        return Moment(at_s, stats.count, free_s)

    async def read(self, moment: Moment) -> None:
        """Read both consoles at once and compare what is new; one call at a time.

        Raises `HostOutOfReach`.
        """
        if not self._read_before:
            self._read_before = True
            size = await self.vms[0].console.size()
            before = _Follower(self.vms[0], max(0, size - BEFORE_BYTES))
            for _ in range(BEFORE_BYTES // CONSOLE_BYTES):
                self._words.before((await before.read())[0])
        both = await asyncio.gather(*(one.read() for one in self._consoles))
        await asyncio.to_thread(self._compare, moment, *both)

    def _compare(
        self, moment: Moment, one: tuple[list[bytes], bool], two: tuple[list[bytes], bool]
    ) -> None:
        """Compare new lines of the primary's console with those of the secondary's."""
        words, (said, skipped), (told, _) = self._words, one, two
        words.primary(said, moment.at_s)
        if skipped:
            words.missed(moment.at_s)
        words.secondary(told, moment)
        words.judge(moment)
        self._damage, self._others = tuple(words.damage), words.others
        self._unmet = words.undecided

    def undecided(self) -> bool:
        """Return whether a sign was observed that a moment will make a proof or nothing."""
        return self.deeds.undecided or self._unmet or max(self.load.spinning, self.load.halted) > 0

    def contrast(self) -> Contrast:
        """Return the signs of this session so far."""
        return Contrast(
            events=tuple(self.deeds.alone),
            lines=self._damage,
            others=self._others,
            spinning=self.load.spinning,
            halted=self.load.halted,
            deaf=self.deaf,
            unmatched=self.unmatched,
        )

    def feed_load(self, at_s: float) -> None:
        """Compare the processor time that both guests have used."""
        if self.processors is None:
            return
        worked = []
        for vm, tids, seat in zip(
            self.vms, self.processors, (self.primary, self.secondary), strict=True
        ):
            found = threads.worked(vm.process.identity.pid, tids)
            if found is None:
                return
            worked.append(Worked(at_s, seat.stats.held_s, found))
        self.load.feed(*worked)


class Contrasting:
    """Keeps the contrast of one pair; ``spawn`` makes tasks."""

    def __init__(self, state: PairState, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self.state = state
        self._spawn = spawn
        self._session: _Session | None = None
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
            session.deeds.judge(session.moment(now_s))
            self._conclude(session)

    async def tick(self) -> None:
        """Compare what both guests did since the last call; about once a second."""
        session = self._attend()
        if session is None:
            return
        if session.processors is None:
            await self._find_processors(session)
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

    async def _read(self, session: _Session) -> None:
        """Compare the consoles, unless that is under way."""
        if self._reading:
            return
        self._reading = True
        try:
            await session.read(session.moment(self.state.clock.now()))
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

    def _attend(self) -> _Session | None:
        """Return the session of the QEMUs in the seats now; a new one where they are others."""
        state = self.state
        primary, secondary = state.seat_of(Role.PRIMARY), state.seat_of(Role.SECONDARY)
        there = [seat for seat in (primary, secondary) if seat is not None and _in_colo(seat)]
        session = self._session
        if primary is None or secondary is None or len(there) < 2:
            if secondary is None or secondary.vm is None:
                self._session, state.beside.contrast = None, Contrast()
            return None
        if session is None or session.vms != (primary.vm, secondary.vm):
            if not secondary.diverged:
                state.beside.contrast, state.beside.compared = Contrast(), secondary.vm
            if state.beside.unlike_of is not secondary.vm:  # it may have been compared already
                state.beside.unlike = ()
            self._session = session = _Session(primary, secondary, state.clock)
        return session

    async def _find_processors(self, session: _Session) -> None:
        """Ask both QEMUs which of their threads are processors; asked again where they fail."""
        try:
            found = [await vm.execute(qmp.query_cpus_fast()) for vm in session.vms]
            one, two = ([int(cpu["thread-id"]) for cpu in cpus] for cpus in found)
        except (MonitorError, KeyError, TypeError, ValueError):
            return
        session.processors = one, two

    # -- signs

    def _count(self, session: _Session) -> None:
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

    def _weigh(self, session: _Session) -> None:
        """Compare the processors' load.

        Sample closer where the secondary's behave otherwise.
        """
        now_s = self.state.clock.now()
        session.deeds.judge(session.moment(now_s))
        session.feed_load(now_s)
        if session.unmatched >= SUSPECT_UNMATCHED:
            self._look(session, cpu_sampling.CLOSELY)
        elif session.load.uneven:
            self._look(session, cpu_sampling.BRIEFLY)
        self._conclude(session)

    def _look(self, session: _Session, patience: int) -> None:
        """Sample the registers, unless that is under way or shows nothing now."""
        idle = self._looking is None or self._looking.done()
        eventful = session.deeds.eventful(self.state.clock.now())
        if idle and not eventful and not session.deaf and session.processors is not None:
            self._looking = self._spawn(self._look_at(session, session.processors, patience))

    async def _look_at(
        self, session: _Session, processors: tuple[list[int], list[int]], patience: int
    ) -> None:
        """Find processors of the secondary alone that have stopped to take interrupts."""
        if await session.looking.deaf(processors, patience):
            session.deaf = True
            self._conclude(session)

    def _conclude(self, session: _Session) -> None:
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

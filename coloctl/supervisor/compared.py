"""Hold one secondary and its primary while both are in COLO, and what each of their guests did.

Made by `supervisor.contrast`, which feeds it with events and moments; reads consoles by
`host.console`, and the times of processors by `host.base.Process.worked`. `ha.unmatched` and
`ha.processors` compare them.

Invariant: nothing is compared that is not seen of both guests. While the machine of either is out
of reach no event counts, and times that were read too long ago are left out.
"""

from __future__ import annotations

import asyncio

from coloctl.clock import Clock
from coloctl.ha.processors import FRESH_S, ProcessorLoad, Worked
from coloctl.ha.unmatched import Moment, UnmatchedEvents, UnmatchedLines
from coloctl.host.records import Contact, ThreadTimes
from coloctl.model.observation import Contrast, Life
from coloctl.supervisor import cpu_sampling
from coloctl.supervisor.seat import Seat
from coloctl.vm import VM

#: Bytes read of one console in one second; a guest that writes more is not followed.
CONSOLE_BYTES = 256 * 1024
#: Bytes read of the primary's console from before the session.
BEFORE_BYTES = 1 << 20


#: Lines of a console, and whether some before them were passed over.
_Lines = tuple[list[bytes], bool]


class _LineReader:
    """Reads whole lines of one console as they come."""

    def __init__(self, vm: VM, offset: int) -> None:
        self._vm, self._offset, self._rest = vm, offset, b""

    async def read(self) -> _Lines:
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


class ComparedGuests:
    """One secondary beside one primary, from their entry into COLO on."""

    def __init__(self, primary: Seat, secondary: Seat, clock: Clock) -> None:
        assert primary.vm is not None and secondary.vm is not None
        self.primary, self.secondary = primary, secondary
        self.vms = primary.vm, secondary.vm
        self.looking = cpu_sampling.CpuSampling(primary, secondary, clock)
        self.deeds, self.load = UnmatchedEvents(), ProcessorLoad()
        self.unmatched, self.deaf = 0, False
        self.watches_processors = False  #: `Process.worked` has their threads
        self._agents = self._reached_agents()
        self._words = UnmatchedLines()  # touched by `read` alone, of which one runs
        self._read_before = False
        self._consoles = tuple(_LineReader(vm, vm.process.console_bytes()) for vm in self.vms)
        self._damage: tuple[str, ...] = ()
        self._others, self._unmet = 0, False

    def moment(self, at_s: float) -> Moment:
        """Return that moment by the clock, by the checkpoints and by the primary's processors."""
        stats, free_s = self.primary.stats, None
        times = self._worked(self.vms[0], at_s)
        if times and times.threads:
            free_s = times.at_s - stats.held_s - max(waited for _, waited in times.threads)
        late_ms = max(vm.host.reach.round_trip_ms for vm in self.vms)
        return Moment(at_s, stats.count, free_s, late_ms / 1000)

    def unseen(self) -> bool:
        """Return whether the machine of either guest is out of reach.

        Its events come late then, or never.
        """
        return any(
            vm.host.reach.contact is not Contact.HERE
            and (vm.host.reach.out or vm.process.life() is Life.UNKNOWN)
            for vm in self.vms
        )

    def _reached_agents(self) -> tuple[int, ...]:
        """Return the number of each machine's agent: another one has forgotten some events."""
        return tuple(vm.host.reach.session for vm in self.vms)

    def weigh(self, now_s: float) -> None:
        """Count the events that the secondary's guest had alone, if what both did is seen."""
        before, self._agents = self._agents, self._reached_agents()
        if self.unseen() or before != self._agents:
            self.deeds.missed(now_s)
        else:
            self.deeds.judge(self.moment(now_s))

    def _worked(self, vm: VM, now_s: float) -> ThreadTimes | None:
        """Return what the processors of ``vm`` have worked, unless that was read too long ago."""
        times = vm.process.worked() if self.watches_processors else None
        return times if times and now_s - times.at_s <= FRESH_S else None

    async def read(self, moment: Moment) -> None:
        """Read both consoles at once and compare what is new; one call at a time.

        What was read of one is noted also where the other could not be read. Raises
        `HostOutOfReach`.
        """
        if not self._read_before:
            size = await self.vms[0].console.size()
            before = _LineReader(self.vms[0], max(0, size - BEFORE_BYTES))
            for _ in range(BEFORE_BYTES // CONSOLE_BYTES):
                self._words.before((await before.read())[0])
            self._read_before = True
        read = await asyncio.gather(*(one.read() for one in self._consoles), return_exceptions=True)
        one, two = (None if isinstance(lines, BaseException) else lines for lines in read)
        await asyncio.to_thread(self._compare, moment, one, two)
        for lines in read:
            if isinstance(lines, BaseException):
                raise lines

    def _compare(self, moment: Moment, one: _Lines | None, two: _Lines | None) -> None:
        """Compare new lines of the primary's console with those of the secondary's.

        None stands for a console that could not be read.
        """
        words = self._words
        if one is not None:
            said, skipped = one
            words.primary(said, moment.at_s)
            if skipped:
                words.missed(moment.at_s)
        if two is not None:
            words.secondary(two[0], moment)
        if one is not None and two is not None:
            words.judge(moment)
        self._damage, self._others = tuple(words.damage), words.others
        self._unmet = words.undecided

    def end(self) -> None:
        """Watch the threads of the processors no longer."""
        if self.watches_processors:
            for vm in self.vms:
                vm.process.watch(threads=())

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
        worked = []
        for vm, seat in zip(self.vms, (self.primary, self.secondary), strict=True):
            times = self._worked(vm, at_s)
            if times is None:
                return
            worked.append(Worked(times.at_s, seat.stats.held_s, times.threads))
        self.load.feed(*worked)

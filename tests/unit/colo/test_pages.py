"""Pages of two made-up guests compared: still, moving, damaged, and back again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.becoming import becomes

from coloctl.colo import pages
from coloctl.colo.pages import Reading, compare
from coloctl.colo.programs import NotComparable
from coloctl.errors import CommandRefused
from coloctl.host.scratch import MemoryFile
from coloctl.model.ram import PAGE
from coloctl.model.verified import MemoryVerified
from coloctl.qmp.client import Event
from coloctl.qmp.command import Command
from coloctl.vm import VM

pytestmark = pytest.mark.unit

MIB = 1 << 20
#: Pages of a guest of 2 MiB that can be looked at.
PAGES = (2 * MIB - 0x60000) // PAGE
VIEW = """FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000001fffff (prio 0, ram): pc.ram
"""


@dataclass
class FakeQEMU:
    """A QEMU as far as its memory is asked for; ``before_read`` is the guest at work."""

    memory: bytearray = field(default_factory=lambda: bytearray(2 * MIB))
    view: str = VIEW
    sets: dict[int, int] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)
    before_read: Callable[[], None] = lambda: None
    refuses: str = ""
    events: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    @contextlib.contextmanager
    def listen(self, *_names: str) -> Iterator[FakeQEMU]:
        """Events from now on."""
        self.events = asyncio.Queue()
        yield self

    async def next(self, _deadline_s: float, where: Callable[[Event], bool]) -> None:
        while not where(Event(await self.events.get(), {}, 0.0, 0.0)):
            pass

    @property
    def host(self) -> FakeQEMU:
        return self

    @property
    def monitor(self) -> FakeQEMU:
        return self

    async def scratch(self) -> MemoryFile:
        return MemoryFile()

    async def execute(self, command: Command, _deadline_s: float, fd: int | None = None) -> Any:
        arguments = dict(command.arguments)
        if command.execute == self.refuses:
            raise CommandRefused(command.execute, "it will not do")
        match command.execute:
            case "human-monitor-command":
                return self.view
            case "query-memory-size-summary":
                return {"base-memory": 2 * MIB, "plugged-memory": 0}
            case "add-fd":
                assert fd is not None
                self.sets[arguments["fdset-id"]] = os.dup(fd)
                return {"fd": self.sets[arguments["fdset-id"]]}
            case "remove-fd":
                if arguments["fdset-id"] not in self.sets:
                    raise CommandRefused("remove-fd", "not found")
                os.close(self.sets.pop(arguments["fdset-id"]))
            case "pmemsave":
                self.before_read()
                begin, size = arguments["val"], arguments["size"]
                self.reads.append((begin, begin + size))
                Path(arguments["filename"]).write_bytes(self.memory[begin : begin + size])
        return None


@dataclass
class Guests:
    """Two guests that are made equal by each checkpoint, but for damage that no QEMU knows of."""

    primary: FakeQEMU = field(default_factory=FakeQEMU)
    secondary: FakeQEMU = field(default_factory=FakeQEMU)
    damaged: dict[int, bytes] = field(default_factory=dict)  #: by address, persistent
    checkpoints: int = 0
    at_checkpoint: Callable[[], None] = lambda: None
    #: What the secondary's guest makes of its memory behind each load.
    after_load: Callable[[bytearray], None] = lambda _memory: None

    async def checkpoint(self) -> None:
        self.checkpoints += 1
        await asyncio.sleep(0)  # whoever waits for it listens by now
        self.secondary.events.put_nowait("STOP")
        self.at_checkpoint()
        self.load()
        self.secondary.events.put_nowait("RESUME")
        await asyncio.sleep(0.01)
        self.after_load(self.secondary.memory)

    def load(self) -> None:
        """The secondary's memory is the primary's, but for damage."""
        self.secondary.memory[:] = self.primary.memory
        for at, data in self.damaged.items():
            self.secondary.memory[at : at + len(data)] = data

    async def compare(self) -> MemoryVerified:
        self.load()
        self.after_load(self.secondary.memory)
        one, two = cast("VM", self.primary), cast("VM", self.secondary)
        return await compare(Reading(one, two, self.checkpoint, lambda _done, _total: None))

    def found(self) -> MemoryVerified:
        return asyncio.run(self.compare())


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REST", 0.0)
    monkeypatch.setattr(pages, "MOMENTS_S", (0.0, 0.0))
    monkeypatch.setattr(pages, "LOOKS", 5)
    monkeypatch.setattr(pages, "RACE_S", 0.0)


def test_a_sound_pair_is_the_same_page_for_page() -> None:
    guests = Guests()
    guests.primary.memory[:] = os.urandom(2 * MIB)
    guests.secondary.memory[:] = guests.primary.memory
    found = guests.found()
    assert (found.pages, found.same, found.moving, found.different) == (PAGES, PAGES, 0, 0)
    assert found.left_out == 0x60000 and found.block == "pc.ram"
    for qemu in (guests.primary, guests.secondary):
        assert not qemu.sets
        assert not any(begin < 0x100000 and end > 0xA0000 for begin, end in qemu.reads)
        assert all(end - begin <= pages.CHUNK for begin, end in qemu.reads)


@pytest.mark.parametrize("places", [(0,), (0x1FF000,), (0x3000, 0x4000, 0x150000)])
def test_a_page_that_stays_another_is_told_with_its_address(places: tuple[int, ...]) -> None:
    found = Guests(damaged={at + 77: b"?" for at in places}).found()
    assert found.different == len(places) and found.same == PAGES - len(places)
    told = {at for begin, end in found.places for at in range(begin, end, PAGE)}
    assert told == set(places)


def test_what_a_guest_writes_is_never_accused_however_it_comes_back() -> None:
    """Counters, two-state pages and the secondary alone at work: moving, never different."""
    guests = Guests()
    ticks = {"n": 0}

    def count(qemu: FakeQEMU, at: int) -> None:
        ticks["n"] += 1
        qemu.memory[at : at + 8] = ticks["n"].to_bytes(8, "little")

    def work(qemu: FakeQEMU) -> None:
        count(qemu, 0x10000)
        if qemu is guests.secondary:
            count(qemu, 0x20000)
        qemu.memory[0x30000] ^= 1

    guests.primary.before_read = lambda: work(guests.primary)
    guests.secondary.before_read = lambda: work(guests.secondary)
    found = guests.found()
    assert found.different == 0 and found.moving >= 2
    assert found.same + found.moving == PAGES


def test_what_the_secondary_s_guest_makes_anew_behind_every_load_is_no_damage() -> None:
    """It announces itself to the network each time; the primary's does not."""

    def announce(memory: bytearray) -> None:
        for at in (0x12000, 0x13000, 0x140000, 0x1F0000):
            memory[at : at + 6] = b"\xff" * 6

    found = Guests(after_load=announce).found()
    assert found.different == 0 and found.moving == 4
    both = Guests(after_load=announce, damaged={0x150000: b"?"}).found()
    assert both.places == ((0x150000, 0x151000),) and both.moving == 4


def test_pages_on_both_sides_of_a_hole_are_never_read_as_one() -> None:
    guests = Guests(damaged={0x9F000: b"?", 0x100000: b"?"})
    assert guests.found().different == 2
    for begin, end in guests.secondary.reads + guests.primary.reads:
        assert end <= 0xA0000 or begin >= 0x100000


def test_one_look_that_shows_something_else_acquits() -> None:
    """A checkpoint that puts the page right, however late, says that it was no damage."""
    guests = Guests(damaged={0x5000: b"?"})

    def heal() -> None:
        if guests.checkpoints == pages.LOOKS:
            guests.damaged.clear()

    guests.at_checkpoint = heal
    found = guests.found()
    assert found.different == 0 and found.moving == 1
    assert guests.checkpoints == pages.LOOKS


def test_a_difference_is_believed_after_every_look_alone() -> None:
    guests = Guests(damaged={0x5000: b"?"})
    assert guests.found().different == 1
    assert guests.checkpoints == 1 + pages.LOOKS
    reads = [one for one in guests.primary.reads if one == (0x5000, 0x6000)]
    assert len(reads) == pages.LOOKS * len(pages.MOMENTS_S)
    assert guests.secondary.reads.count((0x5000, 0x6000)) >= len(reads) + pages.LOOKS


@given(
    moving=st.sets(st.integers(0, 159), max_size=6),
    damaged=st.sets(st.integers(0, 159), max_size=6),
)
def test_every_page_is_counted_once(moving: set[int], damaged: set[int]) -> None:
    guests = Guests(damaged={n * PAGE + 9: b"?" for n in damaged})

    def work(memory: bytearray) -> None:
        for n in moving:
            memory[n * PAGE] = (memory[n * PAGE] + 1) % 256

    guests.primary.before_read = lambda: work(guests.primary.memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "MOMENTS_S", (0.0,))
        patch.setattr(pages, "LOOKS", 2)
        patch.setattr(pages, "REST", 0.0)
        found = guests.found()
    assert found.different == len(damaged - moving)
    assert found.same + found.moving + found.different == found.pages


def test_memory_in_other_places_or_unknown_words_is_not_compared() -> None:
    other = Guests()
    other.secondary.view = VIEW.replace("00000000001fffff", "000000000017ffff")
    with pytest.raises(NotComparable, match="other addresses"):
        other.found()
    strange = Guests()
    strange.primary.view = "Memory: 2 MiB\n"
    with pytest.raises(NotComparable, match="no address space"):
        strange.found()


@pytest.mark.parametrize("refused", ["add-fd", "pmemsave", "query-memory-size-summary"])
def test_a_qemu_that_refuses_is_no_difference(refused: str) -> None:
    guests = Guests()
    guests.secondary.refuses = refused
    with pytest.raises(NotComparable, match="it will not do"):
        guests.found()
    asyncio.run(pages.forget(cast("VM", guests.primary)))
    assert not guests.primary.sets


async def test_cancelled_it_leaves_at_once_and_forget_takes_the_rest_back() -> None:
    guests = Guests()
    never = asyncio.Event()
    guests.checkpoint = never.wait  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(guests.compare())
    await becomes(lambda: len(guests.secondary.reads) > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for qemu in (guests.primary, guests.secondary):
        (held,) = qemu.sets.values()
        assert os.fstat(held).st_size == 0
        await pages.forget(cast("VM", qemu))
        assert not qemu.sets

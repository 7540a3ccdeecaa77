"""Compare the memory of a pair in COLO page by page while both guests run; nothing is written.

Called by `supervisor.verifying`; reads through `qmp.ram` and `host.scratch`.

Both guests run between checkpoints, so most pages that differ do so for good reasons. A page can be
compared if it is still on both sides:

1. At each checkpoint the secondary loads every page that the primary wrote, and every page that it
   wrote itself, with the primary's content. So after it both hold the same, page for page.
2. If a page holds ``x`` on the primary and ``y`` on the secondary, before a checkpoint and after
   it, and was not written in between on either side, then the checkpoint left ``y`` where ``x``
   should be: the secondary's page is not the guest's. Only damage does that: a bit that flipped in
   the memory of either host, or a page that QEMU did not know to be written.
3. "Not written" is not seen, only that the content was the same at each look. And there is a reason
   why a secondary's guest makes the same ``y`` of an ``x`` after every checkpoint: virtio-net has
   the guest announce itself whenever its state was loaded, so the secondary's guest sends an ARP
   request each time, which the primary's does not (seen: the request's frame, the rings and the
   counters of the kernel, 4 to 8 pages of 65,440). That happens within a millisecond. So the
   secondary is read again and again while it loads (`_race`): the read that waits when the load
   ends comes before the timer of the announcement, and shows ``x`` where the page is sound. One
   read that shows ``x``, or a look at both that shows anything but ``x`` and ``y``, proves the page
   sound.
4. That read may come late on a machine that is busy. So a page that was never found sound in
   `LOOKS` checkpoints is strong evidence and no proof: it is reported, and nothing is done about
   it.

So a page is *same* (still on both sides, and equal), *different* (still on both sides at every
look, and not equal) or *moving*: no statement is made about it. Damage in a page that the guest
writes all the time is not found, and may be repaired by its next checkpoint anyway.

QEMU writes a chunk at a time (``pmemsave``) into memory without a name, of which it was given a
descriptor. So no filesystem can hold its main loop up, and no file is left. It holds the main loop
for about a millisecond per MiB (docs/qemu.md). Digests of a window are kept, of one look; the
contents of no more than a chunk on each side.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from coloctl.colo.programs import NotComparable
from coloctl.errors import CommandRefused, DeadlineMissed
from coloctl.host.scratch import DIGEST
from coloctl.host.watching import Scratch
from coloctl.model.ram import PAGE, NotUnderstood, Ram, RamRange, main_memory
from coloctl.model.verified import MemoryVerified
from coloctl.qmp import ram as qmp
from coloctl.vm import VM

#: What QEMU writes at once: its main loop is held for about a millisecond.
CHUNK = 1 << 20
#: So many chunks are looked at twice with a checkpoint in between: 256 MiB, 1 MiB of digests on
#: each side.
WINDOW = 256
#: The number of checkpoints after which a page that differs is looked at again, and the moments
#: after each, seconds from the one before; the first alone where more than `FEW` pages differ.
LOOKS = 24
MOMENTS_S = (0.0, 0.06)
FEW = 256
#: Time after the end of a load for which the secondary is still read without a pause.
RACE_S = 0.005
#: And the limit of that after the checkpoint; so many chunks are read in a row at most.
RACE_END_S, RACE_CHUNKS = 0.1, 8
#: Both QEMUs are left alone after each chunk for so many times what the chunk took: on a machine
#: that is busy that is longer, and a guest there needs it more. Seconds at most.
REST, REST_MAX_S = 2.0, 0.1
#: More pages than this are not looked at again; the first of them are enough.
SUSPECTS_MAX = 65_536
#: As many places are reported.
PLACES_MAX = 100
#: The set of descriptors in QEMU that is ours; no other part of coloctl uses any.
FDSET = 7301
#: QEMU's answers, seconds; it may be in a checkpoint.
ANSWER_WAIT_S = 30.0


@dataclass
class Reading:
    """One comparison of memory under way."""

    primary: VM
    secondary: VM
    #: Returns after a checkpoint that began after the call.
    checkpoint: Callable[[], Awaitable[None]]
    report: Callable[[int, int], None]
    rate: int = 0  #: bytes per second that are read on each side, 0 for no limit


@dataclass
class Tally:
    """The result so far; ``suspects``: both digests by address."""

    same: int = 0
    moving: int = 0
    suspects: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    chunks: tuple[RamRange, ...] = ()  #: of all the memory, in order


@dataclass(frozen=True)
class MemoryWindow:
    """The memory of one QEMU, a chunk at a time, as digests."""

    vm: VM
    scratch: Scratch
    path: str  #: of that scratch, as this QEMU opens it
    key: bytes

    async def digests(self, begin: int, end: int) -> bytes:
        """Digest the pages of a range; raises `CommandRefused` and `MonitorError`."""
        await self.vm.execute(qmp.pmemsave(begin, end - begin, self.path), ANSWER_WAIT_S)
        return await self.scratch.digests(end - begin, PAGE, self.key)


async def compare(work: Reading) -> MemoryVerified:
    """Return which pages are the same and which are not.

    Raises `NotComparable` where it cannot be found out. Cancelled, it leaves at once; `forget`
    takes back what the QEMUs were given.
    """
    try:
        ram = await _ram(work)
        async with _both(work) as sides:
            chunks = tuple(_cut(ram.ranges, CHUNK))
            tally = Tally(chunks=chunks)
            for first in range(0, len(chunks), WINDOW):
                await _window(work, sides, chunks[first : first + WINDOW], tally)
                done = min(first + WINDOW, len(chunks))
                work.report(sum(one.size for one in chunks[:done]), ram.size)
            suspected = len(tally.suspects)
            await _settle(work, sides, tally)
    except CommandRefused as error:
        raise NotComparable(error.message) from error
    except NotUnderstood as error:
        raise NotComparable(str(error)) from error
    different = sorted(tally.suspects)
    return MemoryVerified(
        block=ram.block,
        pages=ram.size // PAGE,
        left_out=ram.left_out,
        same=tally.same,
        moving=tally.moving + suspected - len(different),
        different=len(different),
        places=tuple(_runs(different))[:PLACES_MAX],
    )


async def forget(vm: VM) -> None:
    """Take back what a comparison gave to this QEMU; raises `MonitorError`."""
    with contextlib.suppress(CommandRefused):  # it has nothing
        await vm.execute(qmp.remove_fd(FDSET), ANSWER_WAIT_S)


async def _ram(work: Reading) -> Ram:
    """Return the memory of both guests, which is at the same addresses; raises `NotComparable`."""
    mine, theirs = await asyncio.gather(_ram_of(work.primary), _ram_of(work.secondary))
    if mine != theirs:
        raise NotComparable("Both QEMUs show the guest's memory at other addresses.")
    return mine


async def _ram_of(vm: VM) -> Ram:
    said = await vm.execute(qmp.query_memory_size_summary(), ANSWER_WAIT_S)
    view = await vm.execute(qmp.info_mtree(), ANSWER_WAIT_S)
    plugged = int(said.get("plugged-memory", 0))
    return main_memory(str(view), int(said["base-memory"]), plugged)


@contextlib.asynccontextmanager
async def _both(work: Reading) -> AsyncIterator[tuple[MemoryWindow, MemoryWindow]]:
    """Put a scratch into each QEMU; it is empty afterwards, and taken back where all went well."""
    key = secrets.token_bytes(16)
    with contextlib.ExitStack() as scratches:
        sides = []
        for vm in (work.primary, work.secondary):
            await forget(vm)
            scratch = await vm.host.scratch()
            scratches.callback(scratch.close)
            told = await vm.monitor.execute(qmp.add_fd(FDSET), ANSWER_WAIT_S, fd=scratch.fileno())
            sides.append(MemoryWindow(vm, scratch, f"/proc/self/fd/{int(told['fd'])}", key))
        yield sides[0], sides[1]
        for side in sides:
            await forget(side.vm)


async def _window(
    work: Reading,
    sides: tuple[MemoryWindow, MemoryWindow],
    chunks: tuple[RamRange, ...],
    tally: Tally,
) -> None:
    """Look at each page before a checkpoint and after it."""
    before = [await _look(work, sides, chunk) for chunk in chunks]
    await work.checkpoint()
    for chunk, earlier in zip(chunks, before, strict=True):
        later = await _look(work, sides, chunk)
        _sort(tally, chunk.begin, earlier, later)


def _sort(
    tally: Tally, begin: int, earlier: tuple[bytes, bytes], later: tuple[bytes, bytes]
) -> None:
    """Sort the pages of a chunk by the digests of two looks at both sides."""
    if earlier == later and later[0] == later[1]:
        tally.same += len(later[0]) // DIGEST
        return
    for at in range(0, len(later[0]), DIGEST):
        mine, theirs = (digests[at : at + DIGEST] for digests in later)
        if mine != earlier[0][at : at + DIGEST] or theirs != earlier[1][at : at + DIGEST]:
            tally.moving += 1
        elif mine == theirs:
            tally.same += 1
        elif len(tally.suspects) >= SUSPECTS_MAX:
            tally.moving += 1  # no statement is made about it
        else:
            tally.suspects[begin + at // DIGEST * PAGE] = (mine, theirs)


async def _settle(work: Reading, sides: tuple[MemoryWindow, MemoryWindow], tally: Tally) -> None:
    """Remove every suspect that looks otherwise once."""
    for look in range(LOOKS):
        if not tally.suspects:
            return
        racing = asyncio.ensure_future(_race(work.secondary, sides[1], tally, look))
        try:
            await work.checkpoint()
            await asyncio.wait([racing], timeout=RACE_END_S)
        finally:
            racing.cancel()
            (lost,) = await asyncio.gather(racing, return_exceptions=True)
        if isinstance(lost, Exception) and not isinstance(lost, DeadlineMissed):
            raise lost
        for moment_s in MOMENTS_S if len(tally.suspects) <= FEW else MOMENTS_S[:1]:
            await asyncio.sleep(moment_s)
            await _look_again(work, sides, tally)


async def _race(secondary: VM, side: MemoryWindow, tally: Tally, look: int) -> None:
    """Read suspects on the secondary while it loads a checkpoint; the first is another each time.

    A page that shows the primary's content was loaded rightly; what the guest makes of it later
    does not count.
    """
    loop = asyncio.get_running_loop()
    with secondary.monitor.listen("STOP", "RESUME") as events:
        await events.next(ANSWER_WAIT_S, lambda event: event.name == "STOP")
        loaded = asyncio.ensure_future(
            events.next(ANSWER_WAIT_S, lambda event: event.name == "RESUME")
        )
        until_s = float("inf")
        try:
            while tally.suspects and loop.time() < until_s:
                # All that lies in one chunk is read at once, while QEMU holds its lock.
                together = _together(tally.suspects, tally.chunks)
                first = together[look % len(together)]
                for some in (first, *together)[:RACE_CHUNKS] if loaded.done() else (first,):
                    theirs = await side.digests(some.begin, some.end)
                    for page in _in(some, tally):
                        if _at(theirs, some, page) == tally.suspects[page][0]:
                            del tally.suspects[page]
                if loaded.done() and until_s == float("inf"):
                    until_s = loop.time() + RACE_S
        finally:
            loaded.cancel()
            await asyncio.gather(loaded, return_exceptions=True)


async def _look_again(
    work: Reading, sides: tuple[MemoryWindow, MemoryWindow], tally: Tally
) -> None:
    """Look at every suspect once; one that shows other contents than before is none any more."""
    for some in _together(tally.suspects, tally.chunks):
        mine, theirs = await _look(work, sides, some)
        for page in _in(some, tally):
            if tally.suspects[page] != (_at(mine, some, page), _at(theirs, some, page)):
                del tally.suspects[page]


async def _look(
    work: Reading, sides: tuple[MemoryWindow, MemoryWindow], chunk: RamRange
) -> tuple[bytes, bytes]:
    """Compute the digests of a chunk on both sides at nearly the same time; then let both rest."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    mine, theirs = await asyncio.gather(*(side.digests(chunk.begin, chunk.end) for side in sides))
    rest_s = min(REST * (loop.time() - began_s), REST_MAX_S)
    await asyncio.sleep(max(rest_s, chunk.size / work.rate if work.rate else 0.0))
    return mine, theirs


def _cut(ranges: Iterable[RamRange], size: int) -> Iterator[RamRange]:
    """Cut the ranges into pieces of ``size`` bytes at most."""
    for one in ranges:
        for begin in range(one.begin, one.end, size):
            yield RamRange(begin, min(begin + size, one.end))


def _in(some: RamRange, tally: Tally) -> list[int]:
    return [page for page in tally.suspects if some.begin <= page < some.end]


def _at(digests: bytes, some: RamRange, page: int) -> bytes:
    at = (page - some.begin) // PAGE * DIGEST
    return digests[at : at + DIGEST]


def _together(pages: Iterable[int], chunks: Sequence[RamRange]) -> list[RamRange]:
    """Combine the pages of each chunk into one range inside it: between chunks there may be
    devices.
    """
    found: dict[int, RamRange] = {}
    begins = [chunk.begin for chunk in chunks]
    for page in sorted(pages):
        chunk = bisect.bisect_right(begins, page)
        first = found[chunk].begin if chunk in found else page
        found[chunk] = RamRange(first, page + PAGE)
    return list(found.values())


def _runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Combine pages that follow each other into ranges."""
    begin = end = -1
    for page in pages:
        if page != end:
            if begin >= 0:
                yield begin, end
            begin = page
        end = page + PAGE
    if begin >= 0:
        yield begin, end

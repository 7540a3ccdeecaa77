"""Compare the disks of a pair in COLO while its guest runs; nothing is written and nothing held.

Called by `supervisor.verifying`; the programs are `nbd.digest` and `nbd.compare`. Why a reported
difference is one:

1. In COLO every write of the guest goes to the primary's disk and, over NBD, to the secondary's
   image, which holds nothing else: the writes of the secondary's own guest stay in its overlays and
   are dropped at the next checkpoint. So both images are equal whenever no write is under way.
2. `nbd.digest` beside the secondary and `nbd.compare` beside the primary read both disks once, in
   order, chunk by chunk. Chunks whose digests are equal are done: a chunk that is damaged in one
   place differs there however often it is written elsewhere. Chunks that differ are suspects, for
   there may have been a write between the two readings.
3. Suspects are read again on both sides, `LOOKS` times, each time after a checkpoint, which ends
   every write that was under way. A suspect that is equal once is sound. One that had the same two
   different contents at every look differs. One that was written at every look is unsettled.

A checkpoint waits until QEMU has handed over every answer that is under way, so one small request
is under way at a time on each side (`nbd.scan.GENTLE`), and a program that is stopped holds
nothing. A failover needs nothing of the comparison; what an interrupted comparison leaves in the
primary is dropped by the next one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coloctl.clock import Deadline
from coloctl.colo import difference, difference_plan, tls
from coloctl.colo.programs import NotComparable, program, relay, say, socket_of, source, target
from coloctl.errors import CommandRefused
from coloctl.model.pair import NodeName, PairSpec
from coloctl.model.tls import TlsFiles
from coloctl.model.verified import DiskVerified
from coloctl.nbd.compare import RANGES_MAX
from coloctl.nbd.scan import DIGEST, GENTLE
from coloctl.qmp.sequence import run
from coloctl.vm import VM

#: The number of times that a suspect is read on both sides.
LOOKS = 4
#: QEMU's answers, and the silence of a program, seconds.
ANSWER_WAIT_S, PROGRAM_WAIT_S = 30.0, 120.0

Ranges = tuple[tuple[int, int], ...]
Report = Callable[[int, int], None]


@dataclass
class Comparing:
    """One verification under way."""

    spec: PairSpec
    primary: VM
    secondary: VM
    #: Takes one checkpoint and returns after it.
    checkpoint: Callable[[], Awaitable[None]]
    report: Report
    rate: int = 0  #: bytes per second that are read on each side, 0 for no limit
    #: Of the programs, where the pair is encrypted; set by `verify` itself.
    tls: Mapping[NodeName, TlsFiles] = field(default_factory=dict)

    def at_secondary(self, disk: int) -> dict[str, Any]:
        """Return the address of the secondary's disk for a program on its host."""
        return target(self.spec, self.secondary, disk, self.secondary, self.tls)

    def at_primary(self, disk: int) -> dict[str, Any]:
        """Return the address of the primary's disk on its own host."""
        return source(self.primary, difference_plan.whole_export(disk))


async def verify(work: Comparing) -> tuple[DiskVerified, ...]:
    """Return what is equal and what is not; afterwards the primary shows its disks to no program.

    Raises `NotComparable` where it cannot be found out. Cancelled, it leaves at once: what the
    primary still has of it is dropped by the next comparison, or by `difference.drop`.
    """
    spec, primary = work.spec, work.primary
    await difference.drop(spec, primary)
    try:
        sizes = await difference.disk_sizes(spec, primary)
        work.tls = await tls.files(spec, primary, work.secondary)
        steps = difference_plan.show(spec, socket_of(primary))
        await run(steps, primary.monitor, deadline=Deadline(ANSWER_WAIT_S))
        found, done = [], 0
        for disk, size in enumerate(sizes):
            read, suspects = await _scan(work, disk, done, sum(sizes))
            differs, unsettled = await _settle(work, disk, size, suspects) if suspects else ((), ())
            found.append(DiskVerified(spec.disks[disk].id, size, read, differs, unsettled))
            done += size
    except CommandRefused as error:
        raise NotComparable(error.message) from error
    await difference.drop(spec, primary)
    return tuple(found)


async def _scan(work: Comparing, disk: int, before: int, total: int) -> tuple[int, Ranges]:
    """Read both disks once; return the bytes read, and the ranges whose digests differ."""
    key, deadline = secrets.token_hex(16), Deadline(float("inf"))
    async with (
        program(work.secondary.host, "coloctl.nbd.digest") as digester,
        program(work.primary.host, "coloctl.nbd.compare") as comparer,
    ):
        await say(digester, deadline, {"at": work.at_secondary(disk), "key": key, "gentle": True})
        task = {"compare": work.at_primary(disk), "key": key, "rate": work.rate}
        await say(comparer, deadline, task)
        relaying = asyncio.ensure_future(relay(digester, comparer, deadline))
        try:
            while (line := await comparer.hear(PROGRAM_WAIT_S)) is not None:
                said: Mapping[str, Any] = json.loads(line)
                if "failed" in said:
                    raise NotComparable(str(said["failed"]))
                work.report(before + int(said["at"]), total)
                if "done" in said:
                    return int(said["read"]), tuple((int(b), int(e)) for b, e in said["differs"])
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
        why = comparer.last_words().strip().rpartition("\n")[2] or "it wrote nothing"
        raise NotComparable(f"The program that reads the primary ended: {why.rstrip('.')}.")


async def _settle(work: Comparing, disk: int, size: int, suspects: Ranges) -> tuple[Ranges, Ranges]:
    """Return the suspects that differ, and those that stay unsettled."""
    left: dict[int, list[tuple[bytes, bytes]]] = {}
    asked: Sequence[tuple[int, int]] = suspects
    for look in range(LOOKS):
        await work.checkpoint()
        key = "5e" * 16  # the contents of one look are compared with those of another
        mine, theirs = await asyncio.gather(
            _digests(work.primary, work.at_primary(disk), key, asked),
            _digests(work.secondary, work.at_secondary(disk), key, asked),
        )
        seen = {at: (one, theirs[at]) for at, one in mine.items() if one != theirs.get(at)}
        if look == 0:
            left = {at: [both] for at, both in seen.items()}
        else:
            left = {at: [*left[at], seen[at]] for at in left if at in seen}
        if not left:
            return (), ()
        asked = _ranges(left, size)
    still = [at for at, looks in left.items() if len(set(looks)) == 1]
    moving = [at for at, looks in left.items() if len(set(looks)) > 1]
    return _ranges(still, size), _ranges(moving, size)


async def _digests(
    vm: VM, at: Mapping[str, Any], key: str, ranges: Sequence[tuple[int, int]]
) -> dict[int, bytes]:
    """Compute the digest of each chunk in ``ranges``, by where it begins."""
    found: dict[int, bytes] = {}
    async with program(vm.host, "coloctl.nbd.digest") as digester:
        deadline = Deadline(PROGRAM_WAIT_S)
        task = {"at": at, "key": key, "ranges": [list(one) for one in ranges], "gentle": True}
        await say(digester, deadline, task)
        while (line := await digester.hear(PROGRAM_WAIT_S)) is not None:
            said: Mapping[str, Any] = json.loads(line)
            if "failed" in said:
                raise NotComparable(str(said["failed"]))
            if "over" in said:
                return found
            raw, begin = bytes.fromhex(said["digests"]), int(said["begin"])
            for n in range(len(raw) // DIGEST):
                found[begin + n * GENTLE.chunk] = raw[n * DIGEST : (n + 1) * DIGEST]
    raise NotComparable("A program that reads a disk ended before it was done.")


def _ranges(chunks: Sequence[int] | Mapping[int, Any], size: int) -> Ranges:
    """Combine neighbouring chunks into ranges, as many as `nbd.compare` reports at most."""
    found: list[tuple[int, int]] = []
    for at in sorted(chunks):
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], min(at + GENTLE.chunk, size))
        else:
            found.append((at, min(at + GENTLE.chunk, size)))
    return tuple(found[:RANGES_MAX])

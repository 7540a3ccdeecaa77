"""Make a replica equal that held nearly the same disk, by sending only what differs.

Called by `colo.resync`; `colo.verify` and `supervisor.verifying` drop what it left. The programs
beside the disks are `nbd.digest` and `nbd.mend`, the commands those of `qmp.command`.

No record shows what the lost node's disk holds: it may have written after its last checkpoint, and
a killed QEMU leaves no bitmap to trust. So history is not asked; both disks are read:

1. A dirty bitmap on each ``colo-diskN`` of the primary begins to record. Only then is the disk
   shown to programs on its own host, by an NBD export over a unix socket.
2. `nbd.digest` beside the replica hashes it chunk by chunk; `nbd.mend` beside the survivor hashes
   the survivor's, and sends the chunks whose digests differ. Only digests cross the link otherwise.
3. Turns: a second bitmap begins, the first one ends and is read over NBD, and the chunks that it
   names are sent. Again, until little is left or the guest writes faster than it is sent.
4. The guest is stopped. One more turn, and the bitmap that began with it must be empty. The
   replicas join the quorum, and the guest runs on.

Why both disks are equal then. For every chunk, at every moment from the end of step 2: *if no
bitmap that is still to be sent names it, the replica holds what the survivor holds.* Only our
programs write to the replica. A chunk was read here after the recording began, and the replica
holds what was read: its digest was equal, or it was sent. QEMU sets a bit when a write *ends*,
failed or not. A write that ended before the recording began was there to be read. One that ends
later, also one that was under way while the chunk was read, sets its bit after that reading or in a
bitmap that is still to be sent. So what the reading missed, a bitmap names. A turn keeps this true:
the next bitmap records before the old one ends, so a write is in one of them, and a chunk of the
old one is read after the next one began. ``stop`` returns when the requests of all devices have
ended and their bits are set. What is read after it is final, which the empty bitmap of the last
turn proves instead of assuming it.

No job of QEMU's is used. `blockdev-backup` would put a filter above the guest's disk that copies to
the replica before it lets the guest write: a replica that hangs would hang the guest, and one that
dies would fail the guest's write. Here the guest's QEMU has only an idle connection to the replica,
which joins the quorum at the end. If the replica fails, killing a program of ours is enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coloctl.clock import Deadline
from coloctl.colo import difference_plan, plan, tls
from coloctl.colo.programs import (
    NotComparable,
    program,
    relay,
    say,
    socket_of,
    source,
    target,
)
from coloctl.errors import (
    CommandRefused,
    MonitorError,
    ResyncFailed,
)
from coloctl.host.watching import Conversation
from coloctl.model.copied import CopyReport, Method
from coloctl.model.pair import NodeName, PairSpec
from coloctl.model.tls import TlsFiles
from coloctl.nbd.scan import Grain
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.qmp.wait import until_export_gone
from coloctl.vm import VM

#: Called with bytes compared and bytes to compare, of all disks together.
ByteReport = Callable[[int, int], None]

#: The bytes that may be left for the pause: some tens of milliseconds on a link of 1 Gbit/s.
LITTLE_BYTES = 4 * 1024 * 1024
#: A guest that still writes as fast as it is sent after so many turns is held for the last one.
TURNS = 10
#: The limit of the last turn, seconds; the guest is stopped meanwhile.
PAUSE_DEADLINE_S = 30.0
CLEAN_UP_DEADLINE_S = 10.0
#: The questions about each disk while the guest stands still, one after the other.
_JOIN_TRIPS = 5


@dataclass
class Effort:
    """One attempt to send the differences, and its progress."""

    spec: PairSpec
    primary: VM
    secondary: VM
    deadline: Deadline
    report: ByteReport
    rate: int
    sizes: tuple[int, ...]
    mender: Conversation
    grain: Grain
    tls: Mapping[NodeName, TlsFiles]  #: of the programs, where the pair is encrypted
    wrote: bool = False  #: a replica was written to
    read: int = 0
    sent: int = 0

    def source(self, export: str) -> dict[str, Any]:
        """Return the address of an export of the primary on its own host."""
        return source(self.primary, export)

    def target(self, disk: int, beside: VM) -> dict[str, Any]:
        """Return the address of a replica for a program beside that QEMU."""
        return target(self.spec, self.secondary, disk, beside, self.tls)


async def send(
    spec: PairSpec,
    primary: VM,
    secondary: VM,
    *,
    deadline: Deadline,
    report: ByteReport,
    rate: int = 0,
    grain: Grain = Grain(),  # noqa: B008  # frozen
) -> CopyReport:
    """Send the differences, then attach the replicas; the guest runs again.

    Afterwards both sides hold the same disks, and every guest write goes to both. The guest is
    stopped for the last turn only. Nothing of the attempt is left in the primary, also when it
    fails. ``rate``: bytes per second of data sent while the guest runs, 0 for no limit. Raises
    `NotComparable` where a full copy may take its place, `ResyncFailed` where it may not: a write
    to the replica may still be executed.
    """
    try:
        sizes = await disk_sizes(spec, primary)
        files = await tls.files(spec, primary, secondary)
        await _tell(primary, difference_plan.begin(spec, socket_of(primary), grain.chunk), deadline)
        async with program(primary.host, "coloctl.nbd.mend") as mender:
            effort = Effort(
                spec, primary, secondary, deadline, report, rate, sizes, mender, grain, files
            )
            await _send(effort)
    except BaseException:
        with contextlib.suppress(MonitorError):
            await drop(spec, primary)
        raise
    await drop(spec, primary)
    return CopyReport(effort.read, effort.sent, sum(sizes), Method.DIFFERENCE)


async def drop(spec: PairSpec, primary: VM) -> None:
    """Remove all of a comparison from ``primary``, whether one ran, failed or never began."""
    steps = difference_plan.drop(spec)
    deadline = Deadline(CLEAN_UP_DEADLINE_S + primary.host.reach.trips_s(len(steps)))
    await run(steps, primary.monitor, deadline=deadline)


async def disk_sizes(spec: PairSpec, vm: VM) -> tuple[int, ...]:
    """Return the sizes of the guest's disks in bytes."""
    listed = await vm.execute(qmp.query_named_block_nodes())
    found = {str(node["node-name"]): int(node["image"]["virtual-size"]) for node in listed}
    return tuple(found[difference_plan.disk_node(i)] for i, _ in enumerate(spec.disks))


async def _send(effort: Effort) -> None:
    done = 0
    for disk, size in enumerate(effort.sizes):
        await _compare(effort, disk, done)
        done += size
    turn = await _take_turns(effort)
    await _join(effort, turn)


async def _compare(effort: Effort, disk: int, before: int) -> None:
    """Compare a disk and send each chunk that differs, as it was since the recording began.

    ``before``: bytes of the disks that were compared before this one.
    """
    key = secrets.token_hex(16)
    async with program(effort.secondary.host, "coloctl.nbd.digest") as digester:
        await say(
            digester, effort.deadline, {"at": effort.target(disk, effort.secondary), "key": key}
        )
        task = {
            "compare": effort.source(difference_plan.whole_export(disk)),
            "target": effort.target(disk, effort.primary),
            "key": key,
            "rate": effort.rate,
        }
        await say(effort.mender, effort.deadline, task)
        relaying = asyncio.ensure_future(relay(digester, effort.mender, effort.deadline))
        try:
            await _until_done(
                effort,
                effort.deadline,
                lambda at: effort.report(before + at, sum(effort.sizes)),
            )
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)


async def _take_turns(effort: Effort) -> int:
    """Take turns until little is left to send, or a turn saves too little; return the last turn."""
    turn, left = 0, await _recorded(effort, 0)
    while left > LITTLE_BYTES and turn < TURNS:
        turn += 1
        for disk, _ in enumerate(effort.sizes):
            await _turn(effort, disk, turn, effort.deadline)
            await _clear(effort, disk, turn)
        before, left = left, await _recorded(effort, turn)
        if left > before // 2:
            break
    return turn


async def _turn(effort: Effort, disk: int, turn: int, deadline: Deadline) -> None:
    """Send the writes that were recorded up to now, while the next bitmap records."""
    pause = deadline is not effort.deadline
    steps = difference_plan.take_turn(disk, turn, effort.grain.chunk)
    await _tell(effort.primary, steps, deadline)
    bitmap = difference_plan.bitmap(disk, turn - 1)
    task = {
        "copy": effort.source(bitmap),
        "bitmap": bitmap,
        "target": effort.target(disk, effort.primary),
        # Every millisecond of the pause is the guest's; its next flush reaches both disks.
        "rate": 0 if pause else effort.rate,
        "flush": not pause,
    }
    await say(effort.mender, deadline, task)
    await _until_done(effort, deadline, lambda _at: None)


async def _clear(effort: Effort, disk: int, turn: int) -> None:
    """Remove the bitmap that was sent, so that its name can be used again."""
    primary, deadline = effort.primary, effort.deadline
    await _tell(primary, difference_plan.close_export(disk, turn), deadline)
    name = difference_plan.bitmap(disk, turn - 1)
    await until_export_gone(primary.monitor, name, deadline.at_most(CLEAN_UP_DEADLINE_S))
    await _tell(primary, difference_plan.remove_bitmap(disk, turn), deadline)


async def _join(effort: Effort, turn: int) -> None:
    """Stop the guest, send the last writes, attach the replicas, and let the guest run again."""
    primary = effort.primary
    trips = _JOIN_TRIPS * (len(effort.sizes) + 1)
    limit_s = PAUSE_DEADLINE_S + primary.host.reach.trips_s(trips)
    deadline = Deadline(effort.deadline.at_most(limit_s))
    try:
        await primary.execute(qmp.stop(), deadline.remaining())
        for disk, _ in enumerate(effort.sizes):
            await _turn(effort, disk, turn + 1, deadline)
        if await _recorded(effort, turn + 1):
            raise ResyncFailed("A disk was written to while the guest stood still.", stage="resync")
        await run(plan.attach_replicas(effort.spec), primary.monitor, deadline=deadline)
    finally:
        await primary.execute(qmp.cont(), CLEAN_UP_DEADLINE_S)


async def _recorded(effort: Effort, turn: int) -> int:
    """Return how many bytes the bitmaps of ``turn`` name, of all disks together."""
    names = {difference_plan.bitmap(disk, turn) for disk, _ in enumerate(effort.sizes)}
    listed = await effort.primary.execute(qmp.query_named_block_nodes())
    return sum(
        int(bitmap["count"])
        for node in listed
        for bitmap in node.get("dirty-bitmaps", ())
        if bitmap.get("name") in names
    )


async def _until_done(effort: Effort, deadline: Deadline, progress: Callable[[int], None]) -> None:
    """Wait until the survivor's program has done its task; raises like `send`."""
    read, sent = effort.read, effort.sent
    while (line := await effort.mender.hear(deadline.remaining())) is not None:
        said: Mapping[str, Any] = json.loads(line)
        if "writing" in said:
            effort.wrote = True
        elif "failed" in said:
            raise _failed(str(said["failed"]), sure=bool(said["settled"]) or not effort.wrote)
        else:
            effort.read, effort.sent = read + int(said["read"]), sent + int(said["sent"])
            if deadline is effort.deadline:  # not in the pause, which has a fixed end
                deadline.renew()
            progress(int(said["at"]))
            if "done" in said:
                return
    why = effort.mender.last_words().strip().rpartition("\n")[2] or "it wrote nothing"
    why = f"The program that reads the survivor ended: {why.rstrip('.')}."
    raise _failed(why, sure=not effort.wrote)


def _failed(why: str, *, sure: bool) -> NotComparable | ResyncFailed:
    """Build the error; ``sure``: no write to the replica is under way any more."""
    if sure:
        return NotComparable(why)
    return ResyncFailed(
        f"The disks could not be compared: {why}",
        stage="resync",
        hint="the replication link, or the other node's disk",
    )


async def _tell(primary: VM, steps: plan.Plan, deadline: Deadline) -> None:
    """Run the steps on the primary; a refusal means that it cannot do this."""
    try:
        await run(steps, primary.monitor, deadline=deadline)
    except CommandRefused as error:
        raise NotComparable(error.message) from error

"""Compare the disks of a pair that does not run, on two machines: only digests cross between them.

Called by `colo.equal_disks`. On each machine `asked` starts a QEMU without a guest, which shows the
images of that node by exports that cannot be written, over a unix socket. `nbd.digest` runs beside
it (`colo.programs`), and `nbd.alike` compares what both print.

Invariant: no image is written to, none is locked, and nothing of it is left on either machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from coloctl.asked import asked
from coloctl.clock import Deadline
from coloctl.colo.ground import Ground
from coloctl.colo.programs import NotComparable, program, say
from coloctl.errors import ColoctlError
from coloctl.machine import blockdev
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.wires import SocketFile
from coloctl.nbd.alike import Alike
from coloctl.nbd.wire import NBDFailed
from coloctl.qmp import command as qmp

log = logging.getLogger(__name__)

#: Lines of digests that one machine may be ahead of the other: 8 MiB of a disk each.
_AHEAD = 16

#: The lines of both programs for one disk; None ends a disk.
_Lines = asyncio.Queue[str | None]


async def alike(spec: PairSpec, ground: Ground, limit_s: float) -> bool:
    """Return whether every disk holds the same on both nodes; False where that was not found out.

    Raises `TimeoutError` after ``limit_s``.
    """
    lines = {node: _Lines(_AHEAD) for node in NODES}
    reading = _Reading(spec, ground, secrets.token_hex(16), Deadline(limit_s))
    async with asyncio.timeout(limit_s):
        readers = [asyncio.ensure_future(_read(reading, node, lines[node])) for node in NODES]
        try:
            # A reader that fails ends its lines, so the comparison comes to its end in any case.
            return await _compare(reading, lines["a"], lines["b"])
        except NBDFailed as error:
            log.info("The disks were not compared: %s", error.message)
            return False
        finally:
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


@dataclass(frozen=True)
class _Reading:
    """One comparison of the disks of a pair."""

    spec: PairSpec
    ground: Ground
    key: str  #: of the digests, in hexadecimal
    deadline: Deadline


async def _compare(reading: _Reading, one: _Lines, two: _Lines) -> bool:
    """Compare the lines of both machines, disk by disk; raises `NBDFailed`."""
    for _ in reading.spec.disks:
        found = Alike(bytes.fromhex(reading.key))
        while not found.over:
            which = found.behind
            line = await (one, two)[which].get()
            if line is None:
                raise NBDFailed(f"a program on node {NODES[which]} ended before it was done")
            found.hear(which, line)
        if found.differ:
            return False
    return True


async def _read(reading: _Reading, node: NodeName, lines: _Lines) -> None:
    """Put the digests of each disk of ``node`` into ``lines``, one after the other."""
    host, deadline = reading.ground.hosts[node], reading.deadline
    try:
        async with _shown(reading, node) as at:
            for index, _ in enumerate(reading.spec.disks):
                async with program(host, "coloctl.nbd.digest") as digester:
                    export = {"unix": str(at), "export": f"disk{index}"}
                    await say(digester, deadline, {"at": export, "key": reading.key})
                    while (line := await digester.hear(deadline.remaining())) is not None:
                        await lines.put(line)
    except (ColoctlError, NotComparable) as error:
        log.info("The disks of node %s were not read: %s", node, error)
    await lines.put(None)


@contextlib.asynccontextmanager
async def _shown(reading: _Reading, node: NodeName) -> AsyncIterator[Path]:
    """Show the images of ``node`` to programs on its machine while the context is open."""
    facts, host = reading.ground.node(node), reading.ground.hosts[node]
    deadline = reading.deadline
    async with (
        host.workspace("coloctl-disks-") as folder,
        asked(facts.binary.path, host) as session,
    ):
        at = folder / "nbd.sock"
        await session.execute(qmp.nbd_server_start(SocketFile(at)), deadline.remaining())
        for index, disk in enumerate(reading.spec.disks):
            shown = blockdev.shown_node(disk, index, disk.image[node], facts.devices)
            name = str(shown["node-name"])
            export = qmp.block_export_add(f"disk{index}", name, f"disk{index}", writable=False)
            await session.execute(qmp.blockdev_add(shown), deadline.remaining())
            await session.execute(export, deadline.remaining())
        yield at

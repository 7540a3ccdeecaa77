"""Build the QMP sequences that compare a primary's disks with a replica's; pure (`colo.plan`).

Called by `colo.difference`, `colo.verify` and `supervisor.dialogue_disks`; the commands are those
of `qmp.command`. Two bitmaps per disk take turns: one records while the writes that the other
recorded are sent.

Invariant: the new bitmap begins before the old one ends, so a write between the two is in both and
never in none.
"""

from __future__ import annotations

from pathlib import Path

from coloctl.colo.plan import GONE, Plan
from coloctl.model.pair import PairSpec
from coloctl.model.wires import SocketFile
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import Step

#: The server of a primary; a secondary's listens at an address, and no QEMU has both at once.
NO_SERVER = ("NBD server not running",)


def disk_node(disk: int) -> str:
    """Return the node whose content the guest sees, whichever role its QEMU was started in."""
    return f"colo-disk{disk}"


def bitmap(disk: int, turn: int) -> str:
    """Return the bitmap that records in a turn (from 0); the one before it is the other of two."""
    return f"resync{disk}.{'ab'[turn % 2]}"


def whole_export(disk: int) -> str:
    """Return the id and name of the export that shows a disk."""
    return f"resync{disk}"


def begin(spec: PairSpec, socket: Path, granularity: int) -> Plan:
    """Record each disk's writes, then show its content at ``socket``."""
    return (
        *(
            Step(
                qmp.block_dirty_bitmap_add(disk_node(i), bitmap(i, 0), granularity=granularity),
                why="records from before the first block is read" if i == 0 else "",
            )
            for i, _ in enumerate(spec.disks)
        ),
        *show(spec, socket),
    )


def show(spec: PairSpec, socket: Path) -> Plan:
    """Show each disk's content at ``socket``; writes meanwhile are not recorded."""
    return (
        Step(qmp.nbd_server_start(SocketFile(socket)), why="the disks are read on their own host"),
        *(
            Step(
                qmp.block_export_add(whole_export(i), disk_node(i), whole_export(i), writable=False)
            )
            for i, _ in enumerate(spec.disks)
        ),
    )


def take_turn(disk: int, turn: int, granularity: int) -> Plan:
    """End the recording of the turn before and show its bitmap; the one of ``turn`` records."""
    node, old, new = disk_node(disk), bitmap(disk, turn - 1), bitmap(disk, turn)
    return (
        Step(
            qmp.block_dirty_bitmap_add(node, new, granularity=granularity),
            why="a write between the two is in both",
        ),
        Step(qmp.block_dirty_bitmap_disable(node, old)),
        Step(qmp.block_export_add(old, node, old, writable=False, bitmaps=[old])),
    )


def close_export(disk: int, turn: int) -> Plan:
    """Close the export of the bitmap of the turn before, so that it may be removed then."""
    return (Step(qmp.block_export_del(bitmap(disk, turn - 1), mode="hard")),)


def remove_bitmap(disk: int, turn: int) -> Plan:
    """Remove the bitmap of the turn before; its name is free for the next."""
    return (Step(qmp.block_dirty_bitmap_remove(disk_node(disk), bitmap(disk, turn - 1))),)


def drop(spec: PairSpec) -> Plan:
    """Remove server, exports and bitmaps of a comparison, however far it had come."""
    return (
        Step(
            qmp.nbd_server_stop(),
            why="nothing of a comparison stays; its exports go with the server",
            tolerate=NO_SERVER,
        ),
        *(
            Step(qmp.block_dirty_bitmap_remove(disk_node(i), bitmap(i, turn)), tolerate=GONE)
            for i, _ in enumerate(spec.disks)
            for turn in (0, 1)
        ),
    )

"""What a primary is told when its disks are compared with a replica's; pure (`colo.plan`).

Two bitmaps per disk take turns: one records while what the other has recorded is sent. The new one
begins before the old one ends, so that a write between the two is in both and never in none.
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
    """The node whose content the guest sees, whatever role its QEMU was born in."""
    return f"colo-disk{disk}"


def bitmap(disk: int, turn: int) -> str:
    """The bitmap that records in a turn (from 0); the one before it is the other of two."""
    return f"resync{disk}.{'ab'[turn % 2]}"


def whole_export(disk: int) -> str:
    """Id and name of the export that shows a disk."""
    return f"resync{disk}"


def begin(spec: PairSpec, socket: Path, granularity: int) -> Plan:
    """Each disk's writes are recorded, and then its content can be read at ``socket``."""
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
    """Each disk's content can be read at ``socket``; what is written meanwhile is not recorded."""
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
    """The bitmap of the turn before records no more and can be read; that of ``turn`` does."""
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
    """Nobody reads the bitmap of the turn before any more; it may be removed when that is done."""
    return (Step(qmp.block_export_del(bitmap(disk, turn - 1), mode="hard")),)


def remove_bitmap(disk: int, turn: int) -> Plan:
    """The bitmap of the turn before is gone; its name is free for the next."""
    return (Step(qmp.block_dirty_bitmap_remove(disk_node(disk), bitmap(disk, turn - 1))),)


def drop(spec: PairSpec) -> Plan:
    """No server, export or bitmap of a comparison is left, however far it had come."""
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

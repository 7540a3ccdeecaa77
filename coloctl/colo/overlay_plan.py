"""Build the sequences by which a secondary's QEMU shows later what it merged; pure.

Called by `colo.protect`, which runs them when COLO is entered, by `ha.merge`, which ends them, and
by `supervisor.dialogue`, which prints them. Commands are those of `qmp.command` and `qmp.tracing`;
`colo.overlays` reads what they leave.

Invariant: what they leave distinguishes a merged disk from one that is not, also where there was no
supervisor, and however that QEMU ended.
"""

from __future__ import annotations

from pathlib import Path

from coloctl.colo.plan import Plan
from coloctl.machine import blockdev, merge_log
from coloctl.model.pair import PairSpec
from coloctl.qmp import command as qmp
from coloctl.qmp import tracing
from coloctl.qmp.sequence import Step


def mark_overlays(spec: PairSpec) -> Plan:
    """Mark the secondary's files: later they show if QEMU merged an overlay, and how it ended.

    A disk is active in COLO only, so this comes no earlier.
    """
    if not spec.disks:
        return ()
    name, coarse = blockdev.CLOSED, blockdev.CLOSED_GRANULARITY
    active = [blockdev.overlay_ids(i)[0] for i, _ in enumerate(spec.disks)]
    marker = qmp.mark_written(blockdev.CLOSE_MARKER)
    return (
        Step(marker, why="a QEMU that is killed leaves it marked"),
        *(
            Step(
                qmp.block_dirty_bitmap_add(node, name, granularity=coarse, persistent=True),
                why="written into it when it is closed: when its image has everything",
            )
            for node in active
        ),
    )


def name_log(log: Path) -> Plan:
    """Let the secondary's QEMU write its log to ``log``; nothing comes before a promotion.

    `plan.note_merges` switches on what it then notes about merges.
    """
    return (Step(tracing.set_log_file(str(log)), why="shows which images had everything"),)


def log_no_merges() -> Plan:
    """Let it note nothing more, because the disk record has it."""
    return (Step(tracing.trace_event_set_state(merge_log.TRACE_EVENT, enable=False)),)

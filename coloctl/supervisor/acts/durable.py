"""Make sure that a decision about who runs the guest is on a disk, on machines that have no room.

`acts.failover` calls this. Invariant: without ``--force`` nobody is fenced or promoted unless the
decision can be, and then is, in at least one place that the next start asks: the claim, or the
number beside the survivor's image.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from coloctl.colo import generation, overlays
from coloctl.colo.generation import Worth
from coloctl.errors import PreconditionFailed
from coloctl.ha.arbiter import FILE_NAME
from coloctl.host import durable
from coloctl.model.event import Kind
from coloctl.model.pair import Role
from coloctl.model.view import Merge
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState

#: More than a claim takes, bytes.
PROBE = b"\0" * 4096


async def require_place(state: PairState, survivor: Seat) -> None:
    """Find a place for the decision before anything is fenced.

    Asks nothing while the journal works. Raises `PreconditionFailed` where there is none: a healthy
    pair then stays as it is.
    """
    if not state.pending_records.sentence():
        return
    path = state.spec.arbiter.path or state.ground.folder / FILE_NAME
    try:
        await asyncio.to_thread(_probe, path)
    except PreconditionFailed:
        if state.spec.arbiter.path is not None:
            raise
        worth = Worth.FOLLOWING if survivor.view.role is Role.SECONDARY else Worth.IN_SYNC
        spec, hosts = state.spec, state.ground.hosts
        lacking: generation.Overlays = {}
        if survivor.merge is not Merge.NONE:
            worth, lacking = Worth.OVERLAY_PENDING, overlays.names(spec, survivor.name)
        # What stands there already is written once more.
        if await generation.keep(
            spec, hosts, survivor.name, state.generation, worth, overlays=lacking
        ):
            raise


def _probe(path: Path) -> None:
    probe = path.with_name(path.name + ".probe")
    try:
        durable.replace(probe, PROBE)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


async def claim_by_disks(
    state: PairState,
    survivor: Seat,
    keeping: asyncio.Task[str],
    error: PreconditionFailed,
    *,
    force: bool,
) -> None:
    """Take the number beside the survivor's image for the claim that could not be written.

    Only where the register is this pair's own: its supervisors are kept apart by the journal's
    lock, so the register guards nothing but their memory, and the next start goes by the numbers
    of the disks. With ``force`` a person decides without any record. Raises ``error`` otherwise.
    """
    if state.spec.arbiter.path is not None:
        raise error
    if (warning := await keeping) and not force:
        raise error
    said = {"claim-not-written": error.message, "beside-the-image": warning or "written"}
    state.record(Kind.NOTE, node=survivor.name, data=said)

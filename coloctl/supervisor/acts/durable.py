"""Make a promotion durable: find a place for the decision, and number the survivor's image.

Called by `supervisor.acts.failover` and `supervisor.acts.failover_book`; writes through
`colo.generation` beside the image, and takes the name of the claim's file from `ha.arbiter`.
Matters on machines whose disks have no room.

Invariant: without ``--force`` no node is fenced or promoted unless the decision can be, and then
is, in at least one place that the next start asks: the claim, or the number beside the survivor's
image.
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

#: How long the guest waits for the number beside its image. It is written in a millisecond, and the
#: guest matters more than a disk that is slow today. Seconds.
COMPANION_WAIT_S = 0.01
#: How long the promotion of a secondary waits until it is on disk that its image does not have the
#: writes of its overlays: without that record the next start would not know of them. Where the
#: guest would be silent for longer, it runs, and the record follows as soon as the disk takes it.
#: Seconds.
PENDING_WAIT_S = 2.0


class Numbering:
    """The generation as it is written beside a survivor's image: begun once, awaited a while."""

    def __init__(self, state: PairState, survivor: Seat) -> None:
        self._state, self._node = state, survivor.name
        #: The overlays whose writes the survivor's images do not have until QEMU has merged them.
        self.lacking: generation.Overlays = (
            overlays.names(state.spec, survivor.name)
            if survivor.view.role is Role.SECONDARY or survivor.merge is not Merge.NONE
            else {}
        )
        self._keeping: asyncio.Task[str] | None = None
        self._claimed = asyncio.Event()  #: the number may be written
        self._durable = asyncio.Event()  #: the number is where the next start finds it, or never

    def prepare(self, number: int) -> asyncio.Task[str]:
        """Begin to read what the number follows; nothing is written before `begin`."""
        if self._keeping is None:
            state = self._state
            self._keeping = asyncio.create_task(
                generation.keep(
                    state.spec, state.ground.hosts, self._node, number,
                    Worth.OVERLAY_PENDING if self.lacking else Worth.IN_SYNC,
                    overlays=self.lacking, durable=self._durable.set, when=self._claimed.wait,
                )
            )  # fmt: skip
            self._keeping.add_done_callback(lambda _: self._durable.set())
        return self._keeping

    def begin(self, number: int) -> asyncio.Task[str]:
        """Begin to write the number, unless that was begun; the task answers with a warning."""
        self._claimed.set()
        return self.prepare(number)

    async def durable(self) -> None:
        """Wait until the number is on disk, for as long as the guest may wait for that."""
        wait_s = PENDING_WAIT_S if self.lacking else COMPANION_WAIT_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._durable.wait()

    async def finish(self) -> str:
        """Wait until the number is written; return why it was not, else an empty string."""
        return "" if self._keeping is None else await self._keeping

    def cancel(self) -> None:
        """Cancel the writing where it is still under way."""
        if self._keeping is not None:
            self._keeping.cancel()


async def require_place(state: PairState, survivor: Seat) -> None:
    """Find a place for the decision before a node is fenced.

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
        # The record that stands there already is written once more.
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

    Only where the register is this pair's own: the journal's lock keeps its supervisors apart, so
    the register guards nothing but their memory, and the next start goes by the numbers of the
    disks. With ``force`` an operator decides without any record. Raises ``error`` otherwise.
    """
    if state.spec.arbiter.path is not None:
        raise error
    if (warning := await keeping) and not force:
        raise error
    data = {"claim-not-written": error.message, "beside-the-image": warning or "written"}
    state.record(Kind.NOTE, node=survivor.name, data=data)

"""Follow the merge of a promoted secondary's overlays to its end, beside any act.

Called by `supervisor.acts.failover_book`, which begins it, by `supervisor.adopt`, which takes it up
again, by `supervisor.acts.stop`, which waits for it, and by `supervisor.acts.protect`, which begins
after it. Asks QEMU through `ha.merge` and writes the disk record through `colo.generation`.

Invariant: the disk record calls the overlays pending from before the promotion until QEMU has put
the image in their place; only then are they removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from coloctl.colo import generation, launch, overlays, registry
from coloctl.colo.generation import Worth
from coloctl.errors import ColoctlError, MonitorError
from coloctl.ha import merge
from coloctl.ha.arbiter import open_arbiter
from coloctl.model.event import Kind
from coloctl.model.pair import NodeName
from coloctl.model.pairevent import StepReached
from coloctl.model.protection import Protection
from coloctl.model.qapi import RunState
from coloctl.model.timeline import FailoverStep
from coloctl.model.units import size
from coloctl.model.view import Merge
from coloctl.qmp import command as qmp
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How often QEMU is asked, seconds. Between the end of a merge and its record QEMU's own log alone
#: shows it (`machine.merge_log`).
POLL_S = 0.02
#: One answer of a QEMU whose disk is slow, seconds.
ANSWER_WAIT_S = 30.0
#: Reading the record of a disk that may be dead with its node, seconds.
RECORD_WAIT_S = 2.0
#: How often a record that could not be written is written again, and how often progress is sent.
RETRY_S, REPORT_PERIOD_S = 1.0, 0.5


class Following:
    """A merge that is followed: ``whole`` is set when the image holds everything."""

    def __init__(self, since_s: float | None) -> None:
        self.since_s = since_s  #: when its failover began, a monotonic second; None: not known
        self.whole = asyncio.Event()
        self.whole_at_s = 0.0

    def finish(self, state: PairState) -> None:
        """Note that the image holds everything, and send that step of the failover to clients."""
        self.whole_at_s = state.clock.now()
        self.whole.set()
        if self.since_s is not None:
            at_ms = max(0.0, round((self.whole_at_s - self.since_s) * 1000, 2))
            state.emit(StepReached(act="failover", step=str(FailoverStep.MERGED), at_ms=at_ms))


def begin(state: PairState, seat: Seat, since_s: float | None = None) -> Following:
    """Begin to follow the merge on ``seat``; of a failover that began at ``since_s``."""
    following = Following(since_s)
    if seat.vm is not None:
        seat.merge = Merge.UNDER_WAY
        seat.follow(asyncio.create_task(_follow(state, seat, seat.vm, following)))
    return following


async def resume(state: PairState) -> None:
    """Follow the merge of a seat that was taken over, where its disk record calls it pending.

    Not in the middle of a failover: that is finished first, and follows it.
    """
    if state.protection in (Protection.FAILOVER, Protection.FAILED):
        return
    for seat in state.seats.values():
        if seat.vm is None or not seat.vm.process.alive() or not state.spec.disks:
            continue
        host = state.ground.hosts[seat.name]
        known, _ = await registry.look(state.spec, host, seat.name)
        if known.state is Worth.OVERLAY_PENDING and not seat.in_colo:
            begin(state, seat)


async def sweep(state: PairState, node: NodeName) -> None:
    """Remove what ``node`` needed to run, but overlays that may be pending."""
    pending = await may_be_pending(state, node)
    await launch.sweep(state.spec, state.ground, node, keep_overlays=pending)


async def may_be_pending(state: PairState, node: NodeName) -> bool:
    """Return whether overlays of ``node`` may hold writes that its image does not have.

    The record beside the image is not enough: a claim or a merge under way counts as well.
    """
    if not state.spec.disks:
        return False
    if state.seats[node].merge is not Merge.NONE:
        return True
    try:
        async with asyncio.timeout(RECORD_WAIT_S):
            claim = await open_arbiter(state.spec, state.ground.folder).current()
            known, _ = await registry.look(state.spec, state.ground.hosts[node], node)
    except (ColoctlError, TimeoutError):
        return True
    claimed = claim.generation if claim and claim.node == node else 0
    return overlays.as_claimed(state.spec, known, claimed).state is Worth.OVERLAY_PENDING


async def wait(state: PairState, seat: Seat) -> None:
    """Return when the image of ``seat`` holds everything, has refused it, or its QEMU is gone.

    Has no deadline: a slow disk takes its time. The act under way shows how far it is.
    """
    if seat.merge is Merge.UNDER_WAY and not seat.following:
        begin(state, seat)
    while seat.merge is Merge.UNDER_WAY and seat.vm is not None and seat.vm.process.alive():
        if state.act:
            state.progress("merge", *seat.merged_bytes)
        await asyncio.sleep(REPORT_PERIOD_S)


async def _follow(state: PairState, seat: Seat, vm: VM, following: Following) -> None:
    try:
        if await _watch(state, seat, vm) is Merge.NONE:
            following.finish(state)
            await _over(state, seat, vm)
    except MonitorError as error:
        log.warning("Node %s's overlays stay pending: %s", seat.name, error.message)
    except ColoctlError as error:
        log.error("The merge of node %s is not followed: %s", seat.name, error.message)


async def _watch(state: PairState, seat: Seat, vm: VM) -> Merge:
    """Return, once QEMU merges nothing any more, whether all is merged or an image refused.

    Raises `MonitorError` for a dead QEMU.
    """
    lacking = frozenset(disk.id for disk in state.spec.disks)
    with contextlib.suppress(MonitorError):
        await merge.stay_when_off(vm, stay=True)
    while True:
        with contextlib.suppress(MonitorError):
            seen = await merge.look(state.spec, vm, ANSWER_WAIT_S)
            if seen.merge is Merge.NONE:
                return seen.merge
            lacking = await _shorten_record(state, seat, lacking, seen.disks)
            if seen.merge is Merge.REFUSED and seat.merge is not Merge.REFUSED:
                _refused(state, seat)
                await _release(vm)
            if not seen.committing:
                return seen.merge
            seat.merged_bytes = max(0, seen.held - seen.left), seen.held
        if not vm.process.alive() or vm.monitor.gone:
            raise MonitorError(f"The QEMU of node {seat.name} ended before they were merged.")
        await asyncio.sleep(POLL_S)


async def _shorten_record(
    state: PairState, seat: Seat, before: frozenset[str], lacking: frozenset[str]
) -> frozenset[str]:
    """Remove the overlays of disks that are whole from the disk record, while others take longer.

    The guest writes to a whole image alone: its overlays must not be committed over that later.
    Returns the disks that the record calls pending now.
    """
    if lacking == before:
        return before
    spec, hosts = state.spec, state.ground.hosts
    named = overlays.names(spec, seat.name)
    left = {disk: named[disk] for disk in named if disk in lacking}
    warning = await generation.keep(
        spec, hosts, seat.name, state.generation, Worth.OVERLAY_PENDING, overlays=left
    )
    if warning:  # tried again at the next look; until then QEMU's own marks show it
        log.warning("%s", warning)
        await asyncio.sleep(RETRY_S)
        return before
    return lacking


async def _over(state: PairState, seat: Seat, vm: VM) -> None:
    """Write down that the image is whole, then remove its overlays."""
    spec, hosts, number = state.spec, state.ground.hosts, state.generation
    logged = ""
    while warning := await generation.keep(spec, hosts, seat.name, number):
        if warning != logged:
            log.error("%s", warning)
        logged = warning
        await asyncio.sleep(RETRY_S)
    seat.merge = Merge.NONE
    with contextlib.suppress(MonitorError):
        await merge.log_no_more(vm)
    with contextlib.suppress(ColoctlError):
        await overlays.remove(spec, hosts[seat.name], seat.name)
    with contextlib.suppress(ColoctlError):
        state.record(Kind.OUTCOME, act="failover", step=str(FailoverStep.MERGED), node=seat.name)
    await _release(vm)


async def _release(vm: VM) -> None:
    """Order the QEMU to end with its guest again; now, where that has powered itself off."""
    with contextlib.suppress(MonitorError):
        await merge.stay_when_off(vm, stay=False)
        if (await vm.observe(ANSWER_WAIT_S)).run_state is RunState.SHUTDOWN:
            await vm.execute(qmp.quit())


def _refused(state: PairState, seat: Seat) -> None:
    """Note that an image refused the merge.

    The guest serves on, from the image and its overlays together, which QEMU keeps as one.
    """
    seat.merge = Merge.REFUSED
    why = refusal(state, seat)
    log.error("%s", why)
    explain(state, seat)
    with contextlib.suppress(ColoctlError):
        state.record(Kind.NOTE, node=seat.name, data={"merge-refused": why})


def explain(state: PairState, seat: Seat) -> None:
    """Make a merge that was refused the reason of the pair's state."""
    if seat.merge is Merge.REFUSED:
        state.explain(refusal(state, seat))


def refusal(state: PairState, seat: Seat) -> str:
    """Explain what a merge that was refused means, and how to end it."""
    name = state.spec.name
    return (
        f"The guest runs on node {seat.name} alone, and that node's image did not take its last "
        "writes: they are kept in its overlays, and nothing is lost. QEMU cannot protect it again "
        f"like this: put the image's disk right, then `coloctl stop {name}` and `coloctl start "
        f"{state.spec.source or 'SPEC'}` write them into the image and protect it."
    )


def waiting(seat: Seat) -> str:
    """Describe a merge that is under way, and how far it is."""
    done, total = seat.merged_bytes
    far = f" ({size(done)} of {size(total)} so far)" if total else ""
    return f"Node {seat.name}'s image takes what only its overlays hold{far}."

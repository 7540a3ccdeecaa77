"""Start a pair's guest, and protect it where asked.

Called by `control.service` through `supervisor.acts`. Chooses the disks by `colo.generation`, makes
them whole through `colo.overlays`, launches through `colo.launch`, and then protects as
`supervisor.acts.protect` does.

Invariant: a guest that has run is never ended here; it may have answered clients.
"""

from __future__ import annotations

from coloctl.colo import equal_disks, first_copy, generation, inuse, launch, overlays
from coloctl.colo.companion import WHOLE
from coloctl.colo.generation import Companion, Companions, Worth
from coloctl.errors import ColoctlError, PairBusy, RunsAlone
from coloctl.ha.arbiter import open_arbiter
from coloctl.model.event import GENERATION_NOT_KEPT, Kind
from coloctl.model.pair import NODES, NodeName, Role, other
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import PairView
from coloctl.supervisor import given_up
from coloctl.supervisor.acts.left import require_none
from coloctl.supervisor.acts.protect import (
    Entered,
    Watch,
    bring_secondary,
    has_run,
    seat,
    sentence,
)
from coloctl.supervisor.acts.stop import end_all
from coloctl.supervisor.state import PairState


async def start(
    state: PairState,
    watch: Watch,
    entered: Entered,
    *,
    protected: bool,
    begin_on: NodeName | None = None,
) -> PairView:
    """Start the guest and protect it where asked; protect only where it already runs alone.

    ``begin_on``: begin with that node's disks, even where the other node's are newer. Raises
    `PairBusy` when there is nothing left to start, `RunsAlone` when the guest serves but could not
    be protected, else what launching or protecting raises. A guest that has run is never ended
    here: it may have answered clients. One that was still held before its first instruction is.
    """
    async with state.acting("start", protect=protected, **{"from": begin_on} if begin_on else {}):
        fresh = state.protection is Protection.DOWN
        alone = state.protection is Protection.UNPROTECTED
        if not fresh and (not alone or not protected or begin_on):
            raise PairBusy(
                f"Pair {state.spec.name} already runs ({state.protection}).",
                hint=f"`coloctl status {state.spec.name}` shows it",
            )
        if fresh:
            require_none(state, *NODES)
        state.want_protection(protected)
        held = False
        try:
            if fresh:
                held = await _start_guest(state, watch, hold=protected, begin_on=begin_on)
            if protected:
                await bring_secondary(state, watch, entered, held=held)
        except BaseException as error:
            if fresh:
                await _undo_or_serve(state, error, held=held)
            raise
    return state.view()


async def _undo_or_serve(state: PairState, error: BaseException, *, held: bool) -> None:
    """Undo a start that failed with ``error``, unless the guest has run meanwhile.

    Raises `RunsAlone` when it serves alone now. After an interruption it is left as it is: what
    interrupted the start decides about it.
    """
    if await _has_run(state, held=held):
        if not isinstance(error, ColoctlError):
            return
        if state.protection is Protection.UNPROTECTED:
            raise _runs_alone(state, error) from error
        if state.protection is Protection.FAILED:
            return
    await end_all(state)
    state.note(Fact.OPERATOR_STOPPED, "The start did not succeed.")
    state.explain(f"The start did not succeed: {sentence(error)}")


async def _has_run(state: PairState, *, held: bool) -> bool:
    """Return whether the guest has executed an instruction, as far as its QEMU lives."""
    seat = state.seat_of(Role.PRIMARY)
    if seat is None or seat.vm is None or not seat.vm.process.alive():
        return False
    return not held or await has_run(seat.vm)


def _runs_alone(state: PairState, error: ColoctlError) -> RunsAlone:
    """Build the error of a start whose guest serves unprotected."""
    name, node = state.spec.name, state.vm_of(Role.PRIMARY).node
    again = (
        "the next attempt comes by itself"
        if state.spec.policy.auto_reprotect
        else f"`coloctl reprotect {name}` tries again"
    )
    return RunsAlone(
        f"The guest of {name} runs on node {node}, but it is not protected: {error.message}",
        hint=f"{again}; `coloctl explain {name}` says how it stands",
    )


async def _start_guest(
    state: PairState, watch: Watch, *, hold: bool, begin_on: NodeName | None
) -> bool:
    """Start the primary with the guest's disks; answers whether it is held at its beginning.

    It is held only where it will be protected, can boot under protection, and both nodes' images
    are soon known to be the same: its disks need no copy then. Otherwise it runs at once, and no
    disk is read before.
    """
    spec, ground = state.spec, state.ground
    await given_up.end(spec, ground.hosts)
    state.gone_for_good = given_up.sentence(spec.name)
    await inuse.require_idle(spec, ground.hosts)  # before anything is believed, claimed or written
    state.progress("images")
    companions = await generation.read(spec, ground.hosts)
    claim = await open_arbiter(spec, ground.folder).current()
    numbers = [generation.reached(one) for one in companions.values()]
    state.generation = max(*numbers, claim.generation if claim else 0)
    promoted = (claim.node, claim.generation) if claim else None
    node = begin_on or generation.source(companions, promoted=promoted)
    companions = {**companions, node: await _settle(state, companions[node], promoted)}
    superseded = companions[other(node)].state is Worth.OVERLAY_PENDING
    held = False
    if not hold:
        await launch.require_images(spec, ground, node)
    else:
        known = companions[other(node)].held_guest
        absent = await first_copy.require_place(spec, ground, other(node), known=known)
        if not (absent or superseded or launch.boots_alone(spec, ground)):
            held = await equal_disks.disks_alike(spec, ground, companions)
    if begin_on:
        state.generation += generation.leap(companions)
        await _overrule(state, begin_on)
    else:
        await _keep(state, node, Worth.IN_SYNC)
    if not held:
        await _leave_behind(state, companions, other(node))
    state.progress("primary")
    record = state.recorders[node].record
    vm = await launch.launch_primary(spec, ground, node, paused=held, record=record)
    seat(state, watch, vm, Role.PRIMARY)
    if not held:
        state.note(Fact.GUEST_STARTED, f"The guest runs on node {node}, alone.")
    return held


async def _settle(
    state: PairState, known: Companion, promoted: tuple[NodeName, int] | None
) -> Companion:
    """Make the disks that the guest begins with whole; raises `PreconditionFailed`."""
    spec, ground = state.spec, state.ground
    qemu_img = ground.node(known.node).qemu_img
    claimed = promoted[1] if promoted and promoted[0] == known.node else 0
    known = await overlays.as_overruled(
        spec, ground.hosts[known.node], known, claimed, qemu_img=qemu_img
    )
    return await overlays.settle(
        spec,
        ground.hosts,
        overlays.as_claimed(spec, known, claimed),
        qemu_img=qemu_img,
        report=state.progress,
    )


async def _overrule(state: PairState, node: NodeName) -> None:
    """Make the disks of ``node`` the newest from here on, because an operator ordered it."""
    spec, ground, number = state.spec, state.ground, state.generation + 1
    await open_arbiter(spec, ground.folder).claim(spec.name, node, number)
    await generation.write(spec, ground.hosts, node, number)
    state.grow_generation()
    state.record(Kind.NOTE, node=node, data={"begun-from": node})


async def _leave_behind(state: PairState, companions: Companions, node: NodeName) -> None:
    """Mark disks that the guest runs on without: they are in sync no more.

    Only of those that may be as new as its own. Disks in doubt may have a record that comes back
    when it can be read again.
    """
    left, number = companions[node], state.generation
    if left.doubt:
        await _keep(state, node, Worth.DIVERGED)
    elif left.state in WHOLE and left.generation == number:
        await generation.write(state.spec, state.ground.hosts, node, number, Worth.DIVERGED)


async def _keep(state: PairState, node: NodeName, worth: Worth) -> None:
    """Write what ``node``'s disks are worth where that is possible; else there is a note."""
    hosts = state.ground.hosts
    if warning := await generation.keep(state.spec, hosts, node, state.generation, worth):
        state.record(Kind.NOTE, node=node, data={GENERATION_NOT_KEPT: warning})

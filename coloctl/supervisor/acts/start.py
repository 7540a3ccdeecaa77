"""The way up: the guest runs, and where asked it is protected."""

from __future__ import annotations

from collections.abc import Callable

from coloctl.clock import Deadline
from coloctl.colo import generation, launch
from coloctl.colo.protect import Protecting, protect
from coloctl.errors import ColoctlError, PairBusy, ReplicationError
from coloctl.ha.arbiter import open_arbiter
from coloctl.model.pair import NodeName, Role, other
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import PairView
from coloctl.supervisor.acts.life import unless_it_dies
from coloctl.supervisor.acts.stop import abandon, end_all
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

#: From the launch of a secondary to its first complete checkpoint, seconds; the mirror of a big
#: disk is most of it.
PROTECT_DEADLINE_S = 3600.0
#: A guest that boots under emulation, seconds; the lab's takes 3.
BOOT_DEADLINE_S = 600.0

#: Called with a VM that has just been launched, so that the loop watches it.
Watch = Callable[[Seat], None]
#: Called when COLO was entered, with the primary.
Entered = Callable[[VM], None]


async def start(state: PairState, watch: Watch, entered: Entered, *, protected: bool) -> PairView:
    """The guest runs, protected where asked; one that already runs alone is only protected.

    Raises `PairBusy` when there is nothing left to start, else what launching or protecting raises;
    a guest that did not run before does not run then, and one that did still does.
    """
    async with state.acting("start", protect=protected):
        fresh = state.protection is Protection.DOWN
        if not fresh and (state.protection is not Protection.UNPROTECTED or not protected):
            raise PairBusy(
                f"Pair {state.spec.name} already runs ({state.protection}).",
                hint=f"`coloctl status {state.spec.name}` shows it",
            )
        try:
            held = await _start_guest(state, watch, hold=protected) if fresh else False
            if protected:
                await _protect(state, watch, entered, held=held)
        except BaseException as error:
            if fresh:
                await end_all(state)
                state.note(Fact.OPERATOR_STOPPED, "The start did not succeed.")
                state.explain(f"The start did not succeed: {_sentence(error)}")
            raise
    return state.view()


async def _start_guest(state: PairState, watch: Watch, *, hold: bool) -> bool:
    """The primary is there, with the newest disks; answers whether it is held at its beginning.

    It is held only where it will be protected, can boot under protection, and both nodes' images
    are the same: its disks need no copy then.
    """
    spec, ground = state.spec, state.ground
    state.progress("images")
    equal = await launch.images_equal(spec, ground)
    generations = await generation.read(spec, ground.hosts)
    claim = await open_arbiter(spec, ground.folder).current()
    state.generation = max(*generations.values(), claim.generation if claim else 0)
    node = generation.newest(generations)
    alone = launch.boots_alone(spec, ground)
    held = hold and equal and not alone
    state.progress("primary")
    record = state.recorders[node].record
    vm = await launch.launch_primary(spec, ground, node, paused=held, record=record)
    _seat(state, watch, vm, Role.PRIMARY)
    if not held:
        state.note(Fact.GUEST_STARTED, f"The guest runs on node {node}, alone.")
    if hold and alone:
        state.progress("boot")
        await vm.until_console(spec.guest.ready_line, BOOT_DEADLINE_S)
    return held


def _seat(state: PairState, watch: Watch, vm: VM, role: Role) -> None:
    seat = state.seats[vm.node]
    seat.take(vm, role, state.ground.binary.version)
    state.record_seat(seat)
    watch(seat)


async def _protect(state: PairState, watch: Watch, entered: Entered, *, held: bool) -> None:
    """The pair is in COLO, or the secondary is gone again and the error raised."""
    primary = state.vm_of(Role.PRIMARY)
    node = other(primary.node)
    state.progress("secondary")
    try:
        record = state.recorders[node].record
        secondary = await launch.launch_secondary(state.spec, state.ground, node, record=record)
    except BaseException:
        await launch.sweep(state.spec, state.ground, node)
        raise
    _seat(state, watch, secondary, Role.SECONDARY)
    act = Protecting(
        state.spec, primary, secondary, state.ground.binary.dialect, held, state.delay_ms
    )
    try:
        await unless_it_dies(
            state,
            secondary,
            protect(
                act,
                deadline=Deadline(PROTECT_DEADLINE_S),
                report=state.progress,
                fact=_facts_of_protection(state, node),
            ),
        )
    except BaseException as error:
        try:
            await abandon(state, primary, secondary, was_running=not held)
        except ColoctlError as worse:
            state.note(Fact.FAILOVER_FAILED, f"Protection failed, and so did the way back: {worse}")
            raise
        reason = f"Protection failed: {_sentence(error)}"
        state.note(Fact.PROTECTION_ABANDONED, reason)
        if state.protection is Protection.UNPROTECTED:  # also when it had not come further
            state.explain(reason)
        raise
    entered(primary)


def _facts_of_protection(state: PairState, secondary: NodeName) -> Callable[[Fact, str], None]:
    """Notes facts, and refuses the last one to a replica that missed a write while it joined."""

    def note(fact: Fact, reason: str) -> None:
        if fact is Fact.CHECKPOINT_COMPLETED and state.seats[secondary].missed_write:
            raise ReplicationError(
                f"The disk of node {secondary} missed a write of the guest.",
                stage="protect",
                hint="the replication link, or that node's disk",
            )
        state.note(fact, reason)

    return note


def _sentence(error: BaseException) -> str:
    return error.message if isinstance(error, ColoctlError) else "It was interrupted."

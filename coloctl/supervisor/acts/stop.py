"""Stop a pair: shut its guest down, and remove every process, socket and file of it.

Called by `control.service` for `stop`, by `supervisor.acts.start` after a failure;
`supervisor.acts.failover` ends a lost node with `end`, and `supervisor.acts.protect` gives a
secondary up with `abandon`. The records of the disks are written through `colo.generation`.

Invariant: the secondary ends before the primary, so that it never takes over from a stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from operator import not_

from coloctl.clock import Deadline
from coloctl.colo import generation, guard, launch
from coloctl.colo.generation import Worth
from coloctl.errors import ColoctlError, PairBusy
from coloctl.ha.failover import abandon_secondary
from coloctl.ha.fencing import KILL_DEADLINE_S, unseen, while_seen
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import Merge, Presence
from coloctl.supervisor.acts import left, merge
from coloctl.supervisor.acts.powerdown import Ending, power_down, taken_over
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How long a guest may take to power itself off, seconds, when the verb does not say.
SHUTDOWN_DEADLINE_S = 60.0
#: A stop waits for these: one side is dead already, and the other may not run the guest yet.
LEFT_TO_THEIR_END = frozenset({"failover", "adopt"})
#: For the note of how the guest's images lie, which a stop does without where a disk is slow.
NOTE_WAIT_S = 10.0
#: The questions of that, one after the other: two looks of two each, a flush, two writes.
_NOTE_TRIPS = 7
#: For the failover from a primary that is lost while its guest shuts down, seconds.
TAKE_OVER_WAIT_S = 30.0
#: A machine that boots, or whose connection broke, is often back within seconds; the dials to it
#: are 5 s apart at most (`host.remote.contact`).
BACK_WAIT_S, BACK_PERIOD_S = 10.0, 0.05


async def stop(
    state: PairState,
    *,
    force: bool,
    timeout_s: float = SHUTDOWN_DEADLINE_S,
    back_wait_s: float = BACK_WAIT_S,
) -> str:
    """Shut the guest down, and leave no process, socket or file of the pair.

    Returns how: an `Ending`, or ``"killed"``. Without ``force`` the guest is asked first: its agent
    where it has one, then over ACPI. It stays protected meanwhile: a primary that is lost is failed
    over by the supervisor, and the survivor's guest is asked again. A machine that is out of reach
    then has ``back_wait_s`` to come back, so that nothing stays there. A merge of overlays is
    waited for before, however long it takes; with ``force`` it is left to the next start, and the
    answer names it. Raises `FencingFailed` for a QEMU that would not die.
    """
    while True:
        await make_way(state, None if force else timeout_s)
        async with state.acting("stop", force=force, timeout_s=timeout_s):
            how = "killed"
            primary = state.seat_of(Role.PRIMARY)
            server = serving(state)
            if not force and server is not None:
                await merge.wait(state, server)
            if not force and state.protection is not Protection.DOWN:
                try:
                    how = str(await _power_down(state, timeout_s))
                except ColoctlError as error:
                    log.warning("The guest is not asked to shut down any more: %s", error.message)
            if how != Ending.LOST or primary is None:
                for seat in state.seats.values():
                    seat.retired = True
                secondary = state.seat_of(Role.SECONDARY)
                if how != Ending.OFF and secondary is not None and secondary.vm is not None:
                    state.progress("let go")
                await _leave_secondary_behind(state)
                how += _left_to_the_next_start(serving(state))
                await end_all(state)
                if state.left and back_wait_s:
                    await _end_left_behind(state, back_wait_s)
                how += f"; {left.sentence(state)}".rstrip("; ") if state.left else ""
                state.note(Fact.OPERATOR_STOPPED, f"Stopped by an operator ({how}).")
                return how
        force = not await taken_over(state, primary.name, TAKE_OVER_WAIT_S)


async def make_way(state: PairState, wait_s: float | None) -> None:
    """Wait until no act is under way and none begins by itself, so that the caller's is next.

    A failover is left to its end, for ``wait_s`` at most; every other act is cut short, and
    with None a failover too. Raises `PairBusy` for one that takes longer; it was not touched.
    """
    state.ending = True
    deadline = Deadline(wait_s or 0.0)
    try:
        while state.act:
            if wait_s is None or state.act not in LEFT_TO_THEIR_END:
                await state.interrupt("The pair is being stopped.")
            elif not await state.idle(deadline.remaining()) and state.act:
                raise PairBusy(
                    f"Pair {state.spec.name} is still in a failover after {wait_s:g} s, and a"
                    " failover is not cut short.",
                    hint=f"`coloctl status {state.spec.name}` shows what it waits for; `coloctl "
                    f"stop {state.spec.name} --force` ends the pair all the same",
                )
    finally:
        state.ending = False


def serving(state: PairState) -> Seat | None:
    """Find the node whose QEMU clients reach, or will reach once a failover is finished.

    Between the claim of a generation and the end of its failover the dead node still has the role.
    """
    promoted = (seat for seat in state.seats.values() if seat.merge is not Merge.NONE)
    return next(promoted, None) or state.seat_of(Role.PRIMARY)


def _left_to_the_next_start(server: Seat | None) -> str:
    if server is None or server.merge is Merge.NONE:
        return ""
    return f"; the next start writes node {server.name}'s overlays into its image"


async def _leave_secondary_behind(state: PairState) -> None:
    """Mark the secondary's disks: the guest writes to the primary's alone from here on.

    Where that cannot be written, their record is a secondary's all the same.
    """
    secondary = state.seat_of(Role.SECONDARY)
    if secondary is None or state.protection is not Protection.COLO:
        return
    if secondary.vm is not None and unseen(secondary.vm):
        return
    hosts, number = state.ground.hosts, state.generation
    await generation.keep(state.spec, hosts, secondary.name, number, Worth.DIVERGED)


async def _power_down(state: PairState, timeout_s: float) -> Ending:
    """Wait until the guest has powered itself off; its secondary stays as long as it may help."""

    async def let_go() -> None:
        primary, secondary = state.vm_of(Role.PRIMARY), state.seat_of(Role.SECONDARY)
        if secondary is not None and secondary.vm is not None:
            state.progress("let go")
            await _leave_secondary_behind(state)
            await abandon(state, primary, secondary.vm, was_running=True)

    if state.protection is not Protection.COLO:
        await let_go()  # one that holds nothing yet
    return await power_down(state, Deadline(timeout_s), let_go)


async def end(
    state: PairState, node: NodeName, presence: Presence, *, unproven: bool = False
) -> None:
    """End what runs on ``node`` and remove what it needed, but overlays that are pending.

    A QEMU whose machine is out of reach is left behind, in `PairState.left`, with all that it
    needed: `supervisor.machines` ends it when that machine is back. ``unproven``: a fence has
    just found it out of reach, so that is not tried again. Raises `FencingFailed` for one
    within reach that would not die.
    """
    seat = state.seats[node]
    seat.retired = True
    vm = seat.vm
    unknown = unproven or (vm is not None and unseen(vm))
    pending = unknown or await merge.may_be_pending(state, node)
    if vm is not None:
        proof = None if unproven else await while_seen(vm, vm.kill(KILL_DEADLINE_S))
        if proof is None:
            state.leave_behind(node, seat.view.role, vm.process)
            await vm.monitor.aclose()
        else:
            state.record_end(node, vm.process.identity, proof.how)
    seat.clear(presence)
    if node not in state.left:
        await launch.sweep(state.spec, state.ground, node, keep_overlays=pending)
    if all(one.vm is None for one in state.seats.values()):
        await guard.lift(state.ground.wires(state.spec), state.ground.hosts)


async def end_all(state: PairState) -> None:
    """End both nodes; the secondary first, so that it never takes over."""
    server = serving(state)
    for role in (Role.SECONDARY, Role.PRIMARY, Role.NONE):
        for seat in list(state.seats.values()):
            if seat.view.role is role:
                await end(state, seat.name, Presence.ABSENT)
    if server is not None:
        with contextlib.suppress(ColoctlError, TimeoutError):
            way_s = state.ground.hosts[server.name].reach.trips_s(_NOTE_TRIPS)
            async with asyncio.timeout(NOTE_WAIT_S + way_s):
                await generation.rest(state.spec, state.ground.hosts, server.name)


async def _end_left_behind(state: PairState, wait_s: float) -> None:
    """Wait until `supervisor.machines` has ended what was left behind, ``wait_s`` at most."""
    state.progress("left", limit_s=wait_s)

    async def living() -> bool:
        return bool(state.left)

    if not await Deadline(wait_s).poll(living, BACK_PERIOD_S, done=not_):
        await guard.lift(state.ground.wires(state.spec), state.ground.hosts)


async def abandon(state: PairState, primary: VM, secondary: VM, *, was_running: bool) -> None:
    """End the secondary and leave the primary as it was; one that died is left to the loop."""
    await end(state, secondary.node, Presence.ABSENT)
    if primary.process.alive():
        await abandon_secondary(state.spec, primary, was_running=was_running)

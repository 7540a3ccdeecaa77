"""What can be done to a pair: start, protect, fail over, stop, and the small knobs.

Each act leaves the pair in a state that the protection table knows, also when it fails or is
cancelled half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from coloctl.clock import Deadline
from coloctl.colo import generation, launch
from coloctl.colo.protect import Protecting, checkpoint_now, protect
from coloctl.errors import (
    ColoctlError,
    FencingFailed,
    NotProtected,
    PairBusy,
    ReplicationError,
)
from coloctl.ha.failover import Timeline, abandon_secondary, fail_over, require_merged
from coloctl.ha.fencing import require_means
from coloctl.model.event import Kind
from coloctl.model.pair import NodeName, Role, other
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import Fencing, PairView, Presence
from coloctl.qmp import command as qmp
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.supervisor.survivor import choose
from coloctl.vm import VM

#: From the launch of a secondary to its first complete checkpoint, seconds; the mirror of a big
#: disk is most of it.
PROTECT_DEADLINE_S = 3600.0
#: A guest that boots under emulation, seconds; the lab's takes 3.
BOOT_DEADLINE_S = 600.0
#: A checkpoint that was asked for, seconds.
CHECKPOINT_DEADLINE_S = 30.0
#: How long a guest may take to power itself off, seconds, when the verb does not say.
SHUTDOWN_DEADLINE_S = 60.0

#: Called with a VM that has just been launched, so that the loop watches it.
Watch = Callable[[Seat], None]
#: Called when COLO was entered, with the primary.
Entered = Callable[[VM], None]


async def start(state: PairState, watch: Watch, entered: Entered, *, protected: bool) -> PairView:
    """The guest runs, protected where asked; one that already runs alone is only protected.

    Raises `PairBusy` when there is nothing left to start, else what launching or protecting raises;
    a guest that did not run before does not run then, and one that did still does.
    """
    async with state.acting("start"):
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
    state.generation = max(generations.values())
    node = generation.newest(generations)
    alone = launch.boots_alone(spec, ground)
    held = hold and equal and not alone
    state.progress("primary")
    vm = await launch.launch_primary(spec, ground, node, paused=held, record=None)
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
    identity = vm.process.identity
    # Durable: what a later supervisor, or `stop --force`, has to find is told by this alone.
    state.record(
        Kind.OUTCOME,
        step="launch",
        node=vm.node,
        data={"launched": role, "pid": identity.pid, "start-time": identity.start_time},
    )
    watch(seat)


async def _protect(state: PairState, watch: Watch, entered: Entered, *, held: bool) -> None:
    """The pair is in COLO, or the secondary is gone again and the error raised."""
    primary = state.vm_of(Role.PRIMARY)
    node = other(primary.node)
    state.progress("secondary")
    try:
        secondary = await launch.launch_secondary(state.spec, state.ground, node, record=None)
    except BaseException:
        await launch.sweep(state.spec, state.ground, node)
        raise
    _seat(state, watch, secondary, Role.SECONDARY)
    act = Protecting(
        state.spec, primary, secondary, state.ground.binary.dialect, held, state.delay_ms
    )
    try:
        await _unless_it_dies(
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
            await _abandon(state, primary, secondary, was_running=not held)
        except ColoctlError as worse:
            state.note(Fact.FAILOVER_FAILED, f"Protection failed, and so did the way back: {worse}")
            raise
        state.note(Fact.PROTECTION_ABANDONED, f"Protection failed: {_sentence(error)}")
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


async def _unless_it_dies(secondary: VM, work: Coroutine[Any, Any, None]) -> None:
    """``work`` is done; raises `ReplicationError` as soon as the secondary's process ends."""
    working = asyncio.ensure_future(work)
    dying = asyncio.ensure_future(secondary.process.wait())
    try:
        await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ReplicationError(
                f"The secondary on node {secondary.node} died: {dying.result()}.",
                stage="protect",
                hint=f"its last words: {secondary.last_words(1).strip() or 'none'}",
            )
        await working
    finally:
        for task in (working, dying):
            task.cancel()
        await asyncio.gather(working, dying, return_exceptions=True)


async def _abandon(state: PairState, primary: VM, secondary: VM, *, was_running: bool) -> None:
    """The secondary is gone, the primary as it was; one that died is left to the loop."""
    await end(state, secondary.node, Presence.ABSENT)
    if primary.process.alive():
        await abandon_secondary(state.spec, primary, was_running=was_running)


async def failover(state: PairState, to: NodeName | None, *, force: bool = False) -> Timeline:
    """``to``, or else the secondary, or the primary if only that answers, runs the guest alone.

    ``force`` tries again after a failover that failed: an operator takes it upon himself.
    Raises `FailoverRefused` when that would lose what clients saw acknowledged, `FencingFailed`
    without a proof that the other node is down.
    """
    async with state.acting("failover"):
        survivor, lost = await choose(state, to, force=force)
        role = survivor.view.role
        assert survivor.vm is not None and lost.vm is not None
        require_means(state.spec, lost.vm)
        if state.protection is Protection.COLO:
            state.note(Fact.NODE_LOST, f"A failover to node {survivor.name} was asked for.")
        lost.retired = True
        lost.view = replace(lost.view, fencing=Fencing.IN_PROGRESS)

        warning = ""

        async def promote() -> None:
            nonlocal warning
            lost.view = replace(lost.view, fencing=Fencing.FENCED, presence=Presence.DEAD)
            state.grow_generation()
            warning = await generation.keep(
                state.spec, state.ground.hosts, survivor.name, state.generation
            )
            if warning:
                state.record(Kind.NOTE, node=survivor.name, data={"generation-not-kept": warning})

        try:
            timeline = await fail_over(
                state.spec, survivor.vm, lost.vm, role,
                before_promotion=promote, note=_step_note(state), clock=state.clock,
            )  # fmt: skip
        except ColoctlError as error:
            if isinstance(error, FencingFailed):
                lost.retired = False
                lost.view = replace(lost.view, fencing=Fencing.FAILED)
            state.note(Fact.FAILOVER_FAILED, error.message)
            raise
        await end(state, lost.name, Presence.DEAD)
        survivor.view = replace(survivor.view, role=Role.PRIMARY)
        state.record(Kind.OUTCOME, step="timeline", data=timeline.to_json())
        cleared = state.protection is Protection.FAILED
        state.note(
            Fact.OPERATOR_CLEARED if cleared else Fact.SURVIVOR_RUNS,
            f"The guest runs on node {survivor.name} alone since node {lost.name} was lost. "
            f"{warning}".rstrip(),
        )
        return timeline


def _step_note(state: PairState) -> Callable[[str, float], None]:
    return lambda step, at_ms: state.emit("STEP", {"act": "failover", "step": step, "at-ms": at_ms})


async def stop(state: PairState, *, force: bool, timeout_s: float = SHUTDOWN_DEADLINE_S) -> str:
    """The guest was shut down, and no process, socket or file of the pair is left.

    Answers how: ``"guest shut down"`` or ``"killed"``. Without ``force`` the guest is asked over
    ACPI first. Raises `FencingFailed` for a QEMU that would not die, and `DeadlineMissed` without
    ``force`` for one whose image lacks the guest's last writes; it runs on then.
    """
    await state.interrupt()
    async with state.acting("stop"):
        how = "killed"
        primary = state.seat_of(Role.PRIMARY)
        if not force and primary is not None and primary.vm is not None:
            await require_merged(state.spec, primary.vm, timeout_s)
        for seat in state.seats.values():
            seat.retired = True
        if not force and state.protection is not Protection.DOWN:
            with contextlib.suppress(ColoctlError):
                how = await _power_down(state, timeout_s)
        await end_all(state)
        state.note(Fact.OPERATOR_STOPPED, f"Stopped by an operator ({how}).")
    return how


async def _power_down(state: PairState, timeout_s: float) -> str:
    """The guest powered itself off in time, alone: a secondary is let go first."""
    primary = state.vm_of(Role.PRIMARY)
    secondary = state.seat_of(Role.SECONDARY)
    if secondary is not None and secondary.vm is not None:
        state.progress("let go")
        await _abandon(state, primary, secondary.vm, was_running=True)
    state.progress("guest")
    await primary.execute(qmp.system_powerdown())
    try:
        async with asyncio.timeout(timeout_s):
            await primary.process.wait()
    except TimeoutError:
        return "killed"
    return "guest shut down"


async def end(state: PairState, node: NodeName, presence: Presence) -> None:
    """Nothing of ``node`` runs or lies about."""
    seat = state.seats[node]
    seat.retired = True
    if seat.vm is not None:
        await seat.vm.kill(10)
    seat.vacate(presence)
    await launch.sweep(state.spec, state.ground, node)


async def end_all(state: PairState) -> None:
    """Nothing of the pair runs; the secondary goes first, so that it never takes over."""
    for role in (Role.SECONDARY, Role.PRIMARY, Role.NONE):
        for seat in list(state.seats.values()):
            if seat.view.role is role:
                await end(state, seat.name, Presence.ABSENT)


async def checkpoint(state: PairState) -> PairView:
    """One checkpoint that began after the call is complete."""
    async with state.acting("checkpoint"):
        _require_colo(state)
        await _checkpoint_now(state)
    return state.view()


async def _checkpoint_now(state: PairState) -> None:
    primary, secondary = state.vm_of(Role.PRIMARY), state.vm_of(Role.SECONDARY)
    # A failover must not wait for a checkpoint that can no longer complete.
    await _unless_it_dies(
        secondary, checkpoint_now(primary, state.period_ms(), CHECKPOINT_DEADLINE_S)
    )


async def set_checkpoint_delay(state: PairState, delay_ms: int) -> None:
    """The period is ``delay_ms`` from now on, or from the guest's first connection on.

    Also for the next protection.
    """
    async with state.acting("set"):
        before, state.delay_ms = state.delay_ms, delay_ms
        try:
            if state.protection is Protection.COLO:
                await _checkpoint_now(state)
        except BaseException:
            state.delay_ms = before
            raise
        state.record(Kind.NOTE, data={"checkpoint-delay": delay_ms})


def _require_colo(state: PairState) -> None:
    if state.protection is not Protection.COLO:
        raise NotProtected(
            f"Pair {state.spec.name} is {state.protection}, not in COLO.",
            hint=f"`coloctl status {state.spec.name}` says why",
        )

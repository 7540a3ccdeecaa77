"""One side lives, the other is proven dead: fence -> yank -> lost-heartbeat -> clean-up -> verify.

Invariant: no command that lets a survivor run on is sent before the fence gave its proof.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from coloctl.clock import CLOCK, Clock, Deadline
from coloctl.colo import plan, resync
from coloctl.errors import (
    CommandRefused,
    DeadlineMissed,
    FailoverRefused,
    MonitorError,
    OutcomeUnknown,
    Unreachable,
)
from coloctl.ha.fencing import fence
from coloctl.machine import blockdev
from coloctl.model.pair import PairSpec, Role
from coloctl.model.qapi import COLOMode, RunState
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.qmp.wait import until_nodes_gone, until_runstate
from coloctl.vm import VM

#: How often a yank is built anew when an instance went away between asking and yanking.
YANK_TRIES = 5

#: Out-of-band answers took 11 ms at worst on two busy cores (docs/qemu.md).
RESCUE_DEADLINE_S = 2.0

#: The survivor may have to finish loading a checkpoint first (QEMU's RELAUNCH path).
SURVIVOR_DEADLINE_S = 20.0


@dataclass(frozen=True)
class Timeline:
    """When each step of a failover was done, in milliseconds since it was asked for or noticed."""

    survivor: str
    lost: str
    role_before: Role
    steps: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """``{"survivor": "b", "lost": "a", "steps": {"fenced": 4.2, ...}}``."""
        return {
            "survivor": self.survivor,
            "lost": self.lost,
            "role_before": str(self.role_before),
            "steps": dict(self.steps),
        }


Note = Callable[[str, float], None]


async def fail_over(
    spec: PairSpec,
    survivor: VM,
    lost: VM,
    role: Role,
    *,
    before_promotion: Callable[[], Awaitable[None]],
    note: Note = lambda _step, _ms: None,
    clock: Clock = CLOCK,
) -> Timeline:
    """``survivor`` runs the guest alone and unprotected; ``lost`` is dead.

    ``before_promotion`` is awaited between the proof and the first command to the survivor; what it
    raises stops the failover (the generation is recorded there). ``note`` is called at each step.
    Raises `FencingFailed` when ``lost`` is not proven dead, `FailoverRefused` when the survivor
    does not come to run.
    """
    began = clock.now()
    steps: list[tuple[str, float]] = []

    def done(step: str) -> None:
        at_ms = round((clock.now() - began) * 1000, 1)
        steps.append((step, at_ms))
        note(step, at_ms)

    await fence(spec, lost)
    done("fenced")
    await before_promotion()
    done("recorded")
    deadline = Deadline(SURVIVOR_DEADLINE_S, clock)
    try:
        await yank_peer(spec, survivor, role, deadline)
        done("yanked")
        if role is Role.SECONDARY:
            await open_taps(spec, survivor)
            await run(plan.release_secondary(spec), survivor.monitor, deadline=deadline)
        else:
            await run(plan.release_primary(spec), survivor.monitor, deadline=deadline)
        done("promoted")
        await until_runstate(survivor.monitor, {RunState.RUNNING}, deadline.remaining())
        done("running")
        await run(
            plan.clear_secondary(spec) if role is Role.SECONDARY else plan.clear_primary(spec),
            survivor.monitor,
            deadline=deadline,
            keep_going=True,
        )
        done("cleared")
        if role is Role.SECONDARY and await until_merged(spec, survivor, deadline.remaining()):
            done("merged")
        await _verify(survivor)
        done("verified")
    except MonitorError as error:
        raise FailoverRefused(
            f"Node {survivor.node} could not be brought to run on alone: {error.message}",
            hint=f"its last words: {survivor.last_words(1).strip() or 'none'}",
        ) from error
    return Timeline(survivor.node, lost.node, role, tuple(steps))


async def require_answer(survivor: VM) -> None:
    """The survivor lives and its rescue road answers; asked before anything is fenced for it.

    Raises `FailoverRefused`.
    """
    try:
        if survivor.process.frozen():
            why = "its QEMU is stopped (SIGSTOP)"
        elif survivor.process.alive():
            await survivor.monitor.rescue(qmp.query_yank(), RESCUE_DEADLINE_S)
            return
        else:
            why = "its QEMU is gone"
    except MonitorError as error:
        why = error.message
    raise FailoverRefused(f"Node {survivor.node} cannot survive: {why.rstrip('.')}.")


async def open_taps(spec: PairSpec, vm: VM) -> None:
    """The guest of ``vm`` reaches the LAN."""
    for nic in spec.nics:
        if nic.tap is not None:
            await vm.host.tap(nic.tap.ifname[vm.node], up=True)


async def yank_peer(spec: PairSpec, survivor: VM, role: Role, deadline: Deadline) -> None:
    """Nothing of the survivor waits for its dead peer any more."""
    ours = (
        plan.peer_instances_secondary(spec)
        if role is Role.SECONDARY
        else plan.peer_instances_primary(spec)
    )
    for attempt in range(YANK_TRIES):
        present = await survivor.monitor.rescue(
            qmp.query_yank(), deadline.at_most(RESCUE_DEADLINE_S)
        )
        try:
            await run(plan.yank_peer(present, ours), survivor.monitor, deadline=deadline)
        except CommandRefused:
            if attempt == YANK_TRIES - 1:
                raise
        else:
            return


async def until_merged(spec: PairSpec, survivor: VM, deadline_s: float) -> bool:
    """The image of a promoted secondary holds everything; False when that takes longer.

    It runs meanwhile, but ended too early it would leave its last writes in an overlay.
    """
    overlays = [node for i, _ in enumerate(spec.disks) for node in blockdev.overlay_ids(i)]
    try:
        await until_nodes_gone(survivor.monitor, overlays, deadline_s)
    except DeadlineMissed:
        return False
    return True


async def require_merged(spec: PairSpec, vm: VM, deadline_s: float) -> None:
    """``vm`` may be ended without loss: its image holds everything, or it does not answer at all.

    Raises `DeadlineMissed` when its image still lacks writes that its clients saw acknowledged.
    """
    with contextlib.suppress(Unreachable, OutcomeUnknown):
        await vm.execute(qmp.query_status())
        if not await until_merged(spec, vm, deadline_s):
            raise DeadlineMissed(
                f"The image of node {vm.node} does not hold the last writes of the guest yet.",
                hint="its overlays are being merged: try again later; with --force those writes "
                "are lost",
            )


async def _verify(survivor: VM) -> None:
    vitals = await survivor.observe(SURVIVOR_DEADLINE_S)
    if vitals.run_state is not RunState.RUNNING or vitals.colo_mode is not COLOMode.NONE:
        raise FailoverRefused(
            f"Node {survivor.node} says {vitals.run_state} and COLO mode {vitals.colo_mode} "
            "after its promotion.",
            hint="`coloctl qmp PAIR NODE -- query-status` asks it again",
        )


async def abandon_secondary(spec: PairSpec, primary: VM, *, was_running: bool) -> None:
    """A primary whose protection failed half-way serves on alone; its secondary is dead already.

    Works from every stage between the first NBD connection and the first checkpoint. Raises
    `FailoverRefused` when the guest does not come to run again.
    """
    deadline = Deadline(SURVIVOR_DEADLINE_S)
    try:
        await yank_peer(spec, primary, Role.PRIMARY, deadline)
        await resync.drop_jobs(spec, primary)
        await run(plan.release_primary(spec), primary.monitor, deadline=deadline, keep_going=True)
        await run(plan.clear_primary(spec), primary.monitor, deadline=deadline, keep_going=True)
        if was_running:
            await _resume(primary, deadline)
    except MonitorError as error:
        raise FailoverRefused(
            f"Node {primary.node} did not come back from the attempt: {error.message}"
        ) from error


async def _resume(primary: VM, deadline: Deadline) -> None:
    """The guest runs again, after a failed migration has put its own house in order."""
    try:
        await until_runstate(
            primary.monitor, {RunState.RUNNING}, deadline.at_most(RESCUE_DEADLINE_S)
        )
    except DeadlineMissed:
        await primary.execute(qmp.cont(), deadline.remaining())
        await until_runstate(primary.monitor, {RunState.RUNNING}, deadline.remaining())

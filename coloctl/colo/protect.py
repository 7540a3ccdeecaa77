"""Protect a guest: connect a primary and a fresh secondary, and bring both into COLO.

Called by `supervisor.acts.protect` and `check.trial_run`; the sequences are those of `colo.plan`,
the disks are made equal by `colo.resync`, and each QEMU is reached through its `vm`.

Invariant: the guest keeps running throughout, except for the join of the disks and the end of the
migration. The pair is not called protected before one checkpoint is complete with every filter on
and every wire was checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from coloctl.clock import Deadline
from coloctl.colo import link, overlay_plan, peers, plan, resync, tls
from coloctl.colo.convergence import converge
from coloctl.errors import (
    CheckpointStalled,
    DeadlineMissed,
    MigrationFailed,
    MonitorError,
    ReplicationError,
)
from coloctl.host.channel import channel_pair
from coloctl.host.watching import Channel
from coloctl.model.copied import CopyReport
from coloctl.model.dialect import Dialect
from coloctl.model.pair import MigrationTransport, NodeName, PairSpec
from coloctl.model.protection import Fact
from coloctl.model.qapi import MigrationStatus, RunState
from coloctl.model.tls import TlsWire
from coloctl.model.wires import MIGRATION_FD, SocketFile, Wires
from coloctl.qmp import command as qmp
from coloctl.qmp.monitor import EventStream
from coloctl.qmp.sequence import run
from coloctl.qmp.wait import until_migration, until_runstate
from coloctl.vm import VM

#: Called at each step: its name, and bytes done and to do where that is known.
StepReport = Callable[[str, int | None, int | None], None]
#: Called when a fact of the protection table has become true.
FactReport = Callable[[Fact, str], None]

#: While nothing has shown that the guest ever drew its TCP secrets, checkpoints come at least this
#: often (docs/qemu.md, "The first TCP connection of a guest's life").
CAUTIOUS_DELAY_MS = 1000
#: After so long a checkpoint that was asked for has begun or was forgotten, seconds: a checkpoint
#: takes tens of milliseconds, and to ask once more costs one of them.
ASK_AGAIN_S = 0.25
#: A checkpoint that was asked for, seconds.
CHECKPOINT_DEADLINE_S = 30.0

#: The time a guest may stand still until COLO lets it run, or a first checkpoint takes, seconds.
#: Idle machines need 14 to 311 ms (docs/qemu.md); 15 s were not enough once, in a suite whose two
#: cores had a load of 10. After this something is wedged, and the guest matters more than its
#: protection.
HELD_DEADLINE_S = 30.0
#: The least rate at which what is left of the memory is expected to go over, bytes per second:
#: half of a Gbit/s link.
LEAST_RATE = 60e6


@dataclass(frozen=True)
class Protecting:
    """The pair and the settings on which one act of protection works."""

    spec: PairSpec
    primary: VM
    secondary: VM
    dialect: Dialect
    in_sync: bool  #: the images were proven equal and the guest has not run since
    delay_ms: int  #: checkpoint period, milliseconds
    known: bool = True  #: the replica held this pair's disks once: only what differs is sent
    #: How fast disks may be copied, asked when the copy begins; as in `Policy.mirror_rate`.
    mirror_rate: Callable[[], int] = lambda: 0
    copied: Callable[[CopyReport], None] = lambda _: None  #: called with the report of the copy
    merge_log: Path | None = None  #: of the secondary; None: its overlays are only tried
    turned_away: peers.TurnedAway = lambda _: None  #: called for strangers that were cut off
    tls: Mapping[NodeName, TlsWire] = field(default_factory=dict)  #: set by `protect` itself

    @property
    def wires(self) -> Wires:
        """The addresses at which the two QEMUs meet."""
        return Wires(self.spec, self.secondary.rundir.parent, self.tls)

    @property
    def first_delay_ms(self) -> int:
        return first_delay_ms(self.spec, self.delay_ms)


def first_delay_ms(spec: PairSpec, delay_ms: int) -> int:
    """Return the period until the guest's first connection was seen; for good without a guard."""
    if spec.checkpoint.guard_first_connection:
        return min(delay_ms, CAUTIOUS_DELAY_MS)
    return delay_ms


async def protect(
    act: Protecting, *, deadline: Deadline, report: StepReport, fact: FactReport
) -> None:
    """Bring the pair into COLO and complete one checkpoint with every filter on.

    The primary's QEMU gets no command until its host has received the greeting of the secondary's
    NBD server (`colo.link`). The guest keeps running throughout, except for the join of the disks
    and the switch-over of the migration. Raises `ReplicationError`; the caller then abandons the
    secondary.
    """
    try:
        act = replace(act, tls=await tls.held(act.spec, act.primary, act.secondary))
        await _connect(act, deadline, report)
        await _bring_disks_in_sync(act, deadline, report, fact)
        fact(Fact.MIGRATION_BEGAN, "The memory of the guest is going to the secondary.")
        await _migrate(act, deadline, report)
        await _engage(act, deadline, report)
    except DeadlineMissed as error:
        raise ReplicationError(error.message, stage="protect", hint=error.hint) from error
    except MonitorError as error:
        last = (await act.secondary.last_words(1)).strip()
        raise ReplicationError(
            f"The pair could not be protected: {error.message}",
            stage="protect",
            hint=f"the secondary's last output: {last}" if last else error.hint,
        ) from error
    fact(Fact.CHECKPOINT_COMPLETED, "The first checkpoint is complete.")


async def _connect(act: Protecting, deadline: Deadline, report: StepReport) -> None:
    secondary = act.secondary
    report("connect", None, None)
    await run(
        plan.prepare_secondary(act.wires, secondary.node, act.dialect),
        secondary.monitor,
        deadline=deadline,
    )
    await link.require_exports(act.wires, act.primary.host, secondary.node, deadline)
    await _ensure_filters(act, deadline)
    await run(
        plan.connect_replicas(act.wires, secondary.node), act.primary.monitor, deadline=deadline
    )
    await _require_peers(act, deadline)


async def _require_peers(act: Protecting, deadline: Deadline) -> None:
    await peers.require(act.wires, act.primary, act.secondary, deadline, act.turned_away)


async def _ensure_filters(act: Protecting, deadline: Deadline) -> None:
    """Restore the filters, switched off, of a primary that lost them in a failover."""
    listed = await act.primary.execute(qmp.qom_list("/objects"))
    present = {str(entry["name"]) for entry in listed}
    if act.spec.nics and "comp0" not in present:
        steps = plan.rebuild_filters(
            act.spec,
            act.primary.node,
            act.primary.rundir,
            behind_rewriter="rew0" in present,
            tls=act.wires.security(act.primary.node),
        )
        await run(steps, act.primary.monitor, deadline=deadline)


async def _bring_disks_in_sync(
    act: Protecting, deadline: Deadline, report: StepReport, fact: FactReport
) -> None:
    if act.in_sync:
        report("attach", None, None)
        await run(plan.attach_replicas(act.spec), act.primary.monitor, deadline=deadline)
        return
    fact(Fact.RESYNC_BEGAN, "The disks are being copied to the secondary.")
    copied = await resync.join(
        act.spec,
        act.primary,
        act.secondary,
        deadline=deadline,
        report=report,
        known=act.known,
        rate=act.mirror_rate,
    )
    act.copied(copied)


async def _migrate(act: Protecting, deadline: Deadline, report: StepReport) -> None:
    report("migrate", None, None)
    await _open_stream(act, deadline)
    steps = plan.start_migration(act.wires, act.secondary.node, act.dialect, act.first_delay_ms)
    await run(steps, act.primary.monitor, deadline=deadline)
    held_s = await _hold(act, deadline)
    ends = {
        MigrationStatus.COLO,
        MigrationStatus.COMPLETED,
        MigrationStatus.FAILED,
        MigrationStatus.CANCELLED,
    }
    try:
        reached = await until_migration(act.primary.monitor, ends, deadline.at_most(held_s))
    except DeadlineMissed as error:
        raise await _held_too_long(act, held_s) from error
    if reached is not MigrationStatus.COLO:
        last = (await act.secondary.last_words(1)).strip() or "none"
        raise MigrationFailed(
            f"The migration to node {act.secondary.node} ended as {reached} and not in COLO.",
            stage="migrating",
            hint=(
                "QEMU 10.0.0 to 10.0.6 and early 10.1 cannot enter COLO; "
                "`coloctl probe --full` shows it"
                if reached is MigrationStatus.COMPLETED
                else f"the secondary's last output: {last}"
            ),
        )


async def _held_too_long(act: Protecting, held_s: float) -> MigrationFailed:
    """Build the error of a migration that did not end while the guest stood still for it."""
    last = (await act.secondary.last_words(1)).strip() or "none"
    return MigrationFailed(
        f"The guest stood still for {held_s:.0f} s and COLO did not begin; it was let go on.",
        stage="migrating",
        hint=f"the last output of node {act.secondary.node}'s QEMU: {last}",
    )


async def _hold(act: Protecting, deadline: Deadline) -> float:
    """Stop a guest that runs until COLO begins; return how long that may take, in seconds.

    QEMU would stop it by itself for the last pass, but pages that the guest changes in the passes
    before may then be stale in the secondary's copy for as long as the primary does not change them
    again, and a failover makes them the guest's (docs/qemu.md, "Stale pages").
    """
    if act.in_sync:
        return deadline.remaining()  # it has not run yet: no client waits for it
    monitor = act.primary.monitor
    await converge(act.primary, act.secondary, deadline)
    await run(plan.hold_guest(), monitor, deadline=deadline.within(HELD_DEADLINE_S))
    answer = await monitor.execute(qmp.query_migrate(), deadline.at_most(HELD_DEADLINE_S))
    left = int((answer.get("ram") or {}).get("remaining", 0))
    return HELD_DEADLINE_S + left / LEAST_RATE


async def _open_stream(act: Protecting, deadline: Deadline) -> None:
    """Make the secondary listen, over sockets of ours where the pair file asks for that."""
    spec, primary, secondary = act.spec, act.primary, act.secondary
    if spec.replication.stream is MigrationTransport.FD:
        there, here = await _channel(act, deadline)
        with there, here:
            await secondary.give(MIGRATION_FD, there)
            await primary.give(MIGRATION_FD, here)
    await run(plan.receive(act.wires, secondary.node), secondary.monitor, deadline=deadline)


async def _channel(act: Protecting, deadline: Deadline) -> tuple[Channel, Channel]:
    """Open both ends of the stream, without Nagle's delay, which stalls checkpoints."""
    secondary = act.secondary
    at = act.wires.stream(secondary.node)
    if isinstance(at, SocketFile):
        return await secondary.host.unix_channels()
    return await channel_pair(
        secondary.host, act.primary.host, at, nodelay=True, deadline_s=deadline.at_most(10)
    )


async def _engage(act: Protecting, deadline: Deadline, report: StepReport) -> None:
    """Switch the comparison on, and take a checkpoint that is complete on both sides.

    Begins when the guest runs in COLO. Between the status ``colo`` and that moment, QEMU aborts
    when the checkpoint delay is set (``qemu_event_set: Assertion `ev->initialized'``, seen on
    7.2.22 and 10.0.13).
    """
    report("first checkpoint", None, None)
    deadline = deadline.within(HELD_DEADLINE_S)
    await _let_run(act, deadline)
    with contextlib.suppress(MonitorError):
        if act.merge_log:
            named = overlay_plan.name_log(act.merge_log)
            await run(named, act.secondary.monitor, deadline=deadline)
    with contextlib.suppress(MonitorError):
        await run(overlay_plan.mark_overlays(act.spec), act.secondary.monitor, deadline=deadline)
    await run(plan.engage_filters(act.spec), act.primary.monitor, deadline=deadline)
    await checkpoint_now(act.primary, act.first_delay_ms, deadline.remaining())
    await _require_peers(act, deadline)


async def _let_run(act: Protecting, deadline: Deadline) -> None:
    """Return when the primary's guest runs in COLO; end a hold that came too late.

    QEMU enters COLO by itself when nothing of an idle guest is left to send. The `stop` of `_hold`
    then stops a guest that COLO has let run already, and it would stand still until the end of the
    next checkpoint: for a whole period. So a checkpoint is asked for at once. `cont` would do too,
    but one that meets a checkpoint lets the guest change what is being saved.

    Before COLO lets the guest run its state is `finish-migrate`, never `paused`.
    """
    monitor = act.primary.monitor
    states = {RunState.RUNNING, RunState.PAUSED}
    if await until_runstate(monitor, states, deadline.remaining()) is RunState.PAUSED:
        await run(plan.set_checkpoint_delay(act.first_delay_ms), monitor, deadline=deadline)
        await until_runstate(monitor, {RunState.RUNNING}, deadline.remaining())


async def next_checkpoint(primary: VM, deadline_s: float) -> None:
    """Wait until a checkpoint that began after this call is complete; raises `DeadlineMissed`."""
    deadline = Deadline(deadline_s)
    with primary.monitor.listen("STOP", "RESUME") as events:
        await events.next(deadline.remaining(), lambda event: event.name == "STOP")
        await events.next(deadline.remaining(), lambda event: event.name == "RESUME")


async def checkpoint_now(primary: VM, delay_ms: int, deadline_s: float) -> None:
    """Take a checkpoint that begins after this call, and make the period ``delay_ms``.

    QEMU forgets a request that comes while a checkpoint is under way, so the request is repeated
    until one begins: without that the next would come a whole period later. Raises
    `CheckpointStalled` when none completes in time.
    """
    deadline = Deadline(deadline_s)
    with primary.monitor.listen("STOP", "RESUME") as events:
        try:
            while not await _asked_for(primary, delay_ms, events, deadline):
                pass
            await events.next(deadline.remaining(), lambda event: event.name == "RESUME")
        except DeadlineMissed as error:
            raise CheckpointStalled(
                f"No checkpoint completed within {deadline_s:.0f} s.",
                stage="checkpoint",
                hint="`coloctl probe --full` shows whether this QEMU can hold COLO at all",
            ) from error


async def _asked_for(primary: VM, delay_ms: int, events: EventStream, deadline: Deadline) -> bool:
    """Ask once for a checkpoint; return whether one has begun since.

    Returns at the end of one that had begun before, and after `ASK_AGAIN_S`.
    """
    await run(plan.set_checkpoint_delay(delay_ms), primary.monitor, deadline=deadline)
    left_s = deadline.remaining()
    try:
        return (await events.next(min(left_s, ASK_AGAIN_S))).name == "STOP"
    except DeadlineMissed:
        if left_s <= ASK_AGAIN_S:
            raise
        return False

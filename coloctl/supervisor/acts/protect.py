"""Protect a guest that runs: make a fresh secondary on the other node, or remove it again.

Called by `supervisor.acts.start` and `supervisor.acts.switchover`, by `supervisor.auto_reprotect`,
and by `control.service`. Prepares disks through `colo.generation` and `colo.launch`; `colo.protect`
does the sequence in QEMU.

Invariant: where it fails, the guest runs on alone as before, and the state has the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict

from coloctl.clock import Deadline
from coloctl.colo import accounts, coverage, first_copy, generation, launch, link, overlays, tls
from coloctl.colo.equal_builds import require_same_binary
from coloctl.colo.generation import Worth
from coloctl.colo.protect import Protecting, protect
from coloctl.errors import ColoctlError, MonitorError, PairBusy, ReplicationError
from coloctl.model.copied import CopyReport
from coloctl.model.event import Kind
from coloctl.model.pair import NodeName, Role, other
from coloctl.model.protection import Fact, Protection
from coloctl.model.qapi import RunState
from coloctl.model.strangers import Stranger
from coloctl.model.view import Merge, PairView
from coloctl.supervisor.acts import merge
from coloctl.supervisor.acts.left import require_none
from coloctl.supervisor.acts.life import unless_it_dies
from coloctl.supervisor.acts.stop import abandon
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How long protecting may take without progress, seconds. Copying a disk renews it with every byte
#: that goes over, so a big disk has no fixed end; the time for which a guest stands still has
#: limits of its own.
PROTECT_DEADLINE_S = 600.0

#: A guest that boots under emulation, seconds; the lab's takes 3.
BOOT_DEADLINE_S = 600.0

#: QEMU holds a further QUORUM_REPORT_BAD of the same child back until a second has passed since the
#: last one, and the new replica bears the name of the old one: without this pause it would be
#: blamed for a write that its predecessor missed. Seconds.
REPORTS_END_S = 1.1

#: Run states of a guest that was started with ``-S`` and has not entered COLO: QEMU 7.2 to 11.1
#: go from the first to the others when a migration ends, fails or is given up.
_NEVER_RAN = frozenset({RunState.PRELAUNCH, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE})

#: Called with a VM that has just been launched, so that the loop watches it.
Watch = Callable[[Seat], None]
#: Called when COLO was entered, with the primary.
Entered = Callable[[VM], None]


async def reprotect(state: PairState, watch: Watch, entered: Entered) -> PairView:
    """Protect the guest that runs alone by a fresh secondary.

    Raises `PairBusy` when it is protected already, or no guest runs, else what protecting raises;
    the guest runs on then.
    """
    async with state.acting("protect"):
        require_alone(state)
        await bring_secondary(state, watch, entered, held=False)
    return state.view()


def require_alone(state: PairState) -> None:
    """Require that the guest runs, on one node only; raises `PairBusy`."""
    name = state.spec.name
    if state.protection is Protection.DOWN:
        raise PairBusy(
            f"No guest of pair {name} runs.", hint="`coloctl start` with its pair file starts it"
        )
    if state.protection is not Protection.UNPROTECTED:
        raise PairBusy(
            f"Pair {name} already runs ({state.protection}).",
            hint=f"`coloctl status {name}` shows it",
        )


def seat(state: PairState, watch: Watch, vm: VM, role: Role) -> None:
    """Assign ``vm`` to its node's seat, journal that, and begin to watch it."""
    taken = state.seats[vm.node]
    facts = state.ground.node(vm.node)
    user = accounts.named(vm.process.identity.uid, facts.account)
    unit = ""
    if why := vm.process.unplaced:
        machine = vm.host.machine.name
        unit = f"The QEMU of node {vm.node} on {machine} has no unit of systemd: {why}."
        log.warning(unit)
    taken.take(vm, role, facts.binary.version, user, unit)
    state.record_seat(taken)
    watch(taken)


async def bring_secondary(state: PairState, watch: Watch, entered: Entered, *, held: bool) -> None:
    """Bring the pair into COLO; where that fails, remove the secondary again and raise the error.

    ``held``: the guest has not run yet, and both nodes' disks are equal. Raises `ReplicationError`
    also before, for a guest whose image will never hold its overlays.
    """
    primary = state.vm_of(Role.PRIMARY)
    node = other(primary.node)
    require_none(state, node)
    await coverage.require_covered(state.spec, primary)
    await _until_merged(state, state.seats[primary.node])
    await _until_booted(state, primary)
    await _until_reported(state, state.seats[primary.node])
    await state.beside.tidy()
    state.progress("link")
    await link.require(state.ground.wires(state.spec), primary.host, state.ground.hosts[node], node)
    state.progress("secondary")
    known = True
    try:
        if not held:
            await require_same_binary(state.ground)
            known = await _give_disks(state, node)
            await tls.renew(state.spec, state.ground, primary)
        record = state.recorders[node].record
        secondary = await launch.launch_secondary(state.spec, state.ground, node, record=record)
    except BaseException:
        await launch.sweep(state.spec, state.ground, node)
        raise
    seat(state, watch, secondary, Role.SECONDARY)
    act = Protecting(
        state.spec,
        primary,
        secondary,
        state.ground.node(primary.node).binary.dialect,
        held,
        state.delay_ms,
        known=known,
        mirror_rate=lambda: state.spec.policy.mirror_rate,
        copied=lambda what: _remember_copy(state, node, what),
        turned_away=lambda who: _remember_stranger(state, node, who),
        merge_log=overlays.merge_log(state.spec, node),
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
        ran = not held or await has_run(primary)
        await _give_back(state, primary, secondary, error, was_running=ran)
        raise
    entered(primary)


async def _give_disks(state: PairState, node: NodeName) -> bool:
    """Prepare images of the guest's size on ``node``, and record that they are unfinished.

    Returns whether they have held this guest's disks before, so that comparing is worth it.
    """
    spec, ground = state.spec, state.ground
    before = (await generation.read(spec, ground.hosts))[node]
    await first_copy.require_place(spec, ground, node, known=before.held_guest)
    made = await launch.ensure_images(spec, ground, node)
    if made:
        state.record(Kind.NOTE, node=node, data={"images-made": [str(path) for path in made]})
    target = Worth.RESYNC_TARGET
    await generation.write(spec, ground.hosts, node, state.generation, target)
    return before.written and not made


async def has_run(primary: VM) -> bool:
    """Return whether a guest that was started held has executed an instruction since.

    In COLO it has. A QEMU that does not answer counts as one whose guest has: it may have served.
    """
    try:
        state = (await primary.observe()).run_state
    except MonitorError:
        return True
    return state not in _NEVER_RAN


def _remember_copy(state: PairState, node: NodeName, what: CopyReport) -> None:
    """Record what was copied, in the journal and for every status."""
    state.copied = what.sentence()
    state.record(Kind.NOTE, node=node, data={"copied": asdict(what)})


def _remember_stranger(state: PairState, node: NodeName, who: Stranger) -> None:
    """Count a stranger that was cut off from a wire, and write it into journal and log."""
    log.warning(who.sentence())
    state.beside.turn_away(who, state.clock.now())
    state.record(Kind.NOTE, node=node, data={"stranger": who.sentence()})


async def _give_back(
    state: PairState, primary: VM, secondary: VM, error: BaseException, *, was_running: bool
) -> None:
    """Release the guest to run on alone, or fail the pair; the state has the reason."""
    try:
        await abandon(state, primary, secondary, was_running=was_running)
    except ColoctlError as worse:
        state.note(Fact.FAILOVER_FAILED, f"Protection failed, and so did the way back: {worse}")
        raise error from worse
    reason = f"Protection failed: {sentence(error)}"
    state.note(Fact.PROTECTION_ABANDONED, reason)
    if state.protection is Protection.UNPROTECTED:  # also when it had not come further
        state.explain(reason)


async def _until_merged(state: PairState, primary: Seat) -> None:
    """Wait until the guest's image holds everything; raises `ReplicationError` where it never will.

    A QEMU whose merge failed takes no part in another replication ("Block replication is running or
    done"): what was copied to the other node until then would be in vain.
    """
    await merge.wait(state, primary)
    if primary.merge is Merge.REFUSED:
        raise ReplicationError(merge.refusal(state, primary), stage="protect")


async def _until_booted(state: PairState, primary: VM) -> None:
    """Wait until a guest that has to boot alone has booted since its last reset."""
    if launch.boots_alone(state.spec, state.ground) and primary.booting:
        state.progress("boot")
        await primary.until_booted(state.spec.guest.ready_line, BOOT_DEADLINE_S)
        state.booted()


async def _until_reported(state: PairState, primary: Seat) -> None:
    """Wait until the primary's reports of a replica that is gone have been received."""
    while (wait_s := primary.reported_s + REPORTS_END_S - state.clock.now()) > 0:
        await state.clock.sleep(wait_s)


def _facts_of_protection(state: PairState, secondary: NodeName) -> Callable[[Fact, str], None]:
    """Make the function that notes facts, and refuses the last one after a missed write.

    It refuses as well where the guest began to boot meanwhile and has to do that alone.
    """
    primary = state.vm_of(Role.PRIMARY)

    def note(fact: Fact, reason: str) -> None:
        if primary.booting and launch.boots_alone(state.spec, state.ground):
            raise ReplicationError("The guest was reset and boots.", stage="protect")
        if fact is Fact.CHECKPOINT_COMPLETED and state.seats[secondary].missed_write:
            raise ReplicationError(
                f"The disk of node {secondary} missed a write of the guest.",
                stage="protect",
                hint="the replication link, or that node's disk",
            )
        state.note(fact, reason)

    return note


def sentence(error: BaseException) -> str:
    """Return what went wrong, for a state's reason."""
    return error.message if isinstance(error, ColoctlError) else "It was interrupted."

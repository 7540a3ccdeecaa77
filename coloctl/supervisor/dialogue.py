"""List what a verb would send to each node, step by step; pure, and what ``--dry-run`` prints.

Called by `control.service` and `cli.verbs.start`; takes the sequences of `colo.plan` and the
command lines of `colo.launch`.

Invariant: every step names its node and has exactly one of ``launch`` (a command line), ``command``
(a QMP command as it goes over the socket) and ``act`` (a sentence, or a shell command like it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coloctl.colo import overlay_plan, plan, retune
from coloctl.colo.ground import Ground
from coloctl.colo.launch import boots_alone, primary_command, secondary_command
from coloctl.colo.protect import first_delay_ms
from coloctl.errors import FailoverRefused, NotProtected, PairBusy, UsageError
from coloctl.machine import blockdev
from coloctl.machine.netfilter import comparison_limits
from coloctl.model.pair import MigrationTransport, NodeName, PairSpec, Role, other
from coloctl.model.protection import Protection
from coloctl.model.tuning import period
from coloctl.model.wires import MIGRATION_FD, SocketFile
from coloctl.qmp import command as qmp
from coloctl.supervisor import dialogue_disks
from coloctl.supervisor.dialogue_items import Items, act, command, commands, launch, taps


def dialogue(
    spec: PairSpec,
    ground: Ground,
    verb: str,
    protection: Protection,
    to: NodeName | None = None,
    *,
    primary: NodeName = "a",
    delay_ms: int | None = None,
    changed: PairSpec | None = None,
    protect: bool = True,
    in_sync: bool = True,
    memory: bool | None = None,
) -> Items:
    """Return the steps of ``verb`` for a pair that is in ``protection`` now; none if all is done.

    ``ground`` has the QEMU and the folders; ``primary`` runs the guest, or will. ``to`` is the
    survivor of a ``failover``, by default the other node. ``delay_ms`` is the time between two
    checkpoints, None: that of ``spec``. ``changed`` is the spec with the new settings, for ``set``.
    ``protect`` and ``in_sync`` are for ``start``: whether it protects, and whether the images of
    both nodes are known to be equal. ``memory``: whether ``verify`` compares it, None: as ``spec``.
    Raises `UsageError` for a verb without a dialogue, and `PairBusy`, `NotProtected` or
    `FailoverRefused` where ``protection`` alone forbids it: no host is asked.
    """
    if verb == "start":
        _require_startable(spec, protection, protect)
    alone = boots_alone(spec, ground)
    in_sync = in_sync and protection is Protection.DOWN and not alone
    delay = spec.checkpoint.delay_ms if delay_ms is None else delay_ms
    verbs: Mapping[str, Callable[[], Items]] = {
        "start": lambda: [
            *_begin(spec, ground, protection, primary, held=protect and in_sync),
            *(_boot(spec, primary) if protect and alone and protection is Protection.DOWN else []),
            *(
                _protect(spec, ground, primary, delay, protection=protection, in_sync=in_sync)
                if protect
                else []
            ),
        ],
        "protect": lambda: _reprotect(spec, ground, protection, primary, delay),
        "unprotect": lambda: _unprotect(spec, protection, primary),
        "switchover": lambda: _switchover(spec, ground, protection, primary, delay),
        "failover": lambda: _failover(spec, protection, primary, to),
        "stop": lambda: _stop(spec, protection, primary),
        "set": lambda: _set(spec, protection, primary, changed or spec),
        "verify": lambda: _verify(spec, ground, protection, primary, delay, memory=memory),
        "checkpoint": lambda: _checkpoint(spec, protection, primary, delay),
    }
    if verb not in verbs:
        raise UsageError(
            f"The verb '{verb}' has no dialogue with QEMU.",
            hint=f"these have: {', '.join(verbs)}",
        )
    return verbs[verb]()


def _require_startable(spec: PairSpec, protection: Protection, protect: bool) -> None:
    alone = protection is Protection.UNPROTECTED
    if protection is not Protection.DOWN and not (alone and protect):
        raise PairBusy(
            f"Pair {spec.name} already runs ({protection}).",
            hint=f"`coloctl status {spec.name}` shows it",
        )


def _reprotect(
    spec: PairSpec, ground: Ground, protection: Protection, primary: NodeName, delay_ms: int
) -> Items:
    if protection is not Protection.UNPROTECTED:
        raise PairBusy(
            f"Pair {spec.name} is {protection}: no guest runs alone that could be protected.",
            hint=f"`coloctl status {spec.name}` shows it",
        )
    return _protect(spec, ground, primary, delay_ms, protection=protection, in_sync=False)


def _unprotect(spec: PairSpec, protection: Protection, primary: NodeName) -> Items:
    if protection in (Protection.RESYNC, Protection.MIGRATING):
        return _give_up(spec, primary)
    return _failover(spec, protection, primary, primary) if protection is Protection.COLO else []


def _give_up(spec: PairSpec, primary: NodeName) -> Items:
    """End a secondary that does not hold the guest yet, and let the primary run on alone."""
    lost = other(primary)
    return [
        act(lost, "SIGKILL, and wait for the kernel's proof", "it holds nothing yet"),
        *taps(spec, lost, up=False),
        *_run_on_primary(spec, primary),
    ]


def _switchover(
    spec: PairSpec, ground: Ground, protection: Protection, primary: NodeName, delay_ms: int
) -> Items:
    after = Protection.UNPROTECTED
    return [
        *_checkpoint(spec, protection, primary, delay_ms),
        *_failover(spec, protection, primary, other(primary)),
        *_protect(spec, ground, other(primary), delay_ms, protection=after, in_sync=False),
    ]


def _verify(
    spec: PairSpec,
    ground: Ground,
    protection: Protection,
    primary: NodeName,
    delay_ms: int,
    *,
    memory: bool | None,
) -> Items:
    taken = _checkpoint(spec, protection, primary, delay_ms)
    pages = spec.verify.memory if memory is None else memory
    return [
        *dialogue_disks.verified(spec, ground, primary, taken),
        *(dialogue_disks.compared_pages(primary, taken) if pages else []),
    ]


def _begin(
    spec: PairSpec, ground: Ground, protection: Protection, primary: NodeName, *, held: bool
) -> Items:
    return _launch_primary(spec, ground, primary, held) if protection is Protection.DOWN else []


def _boot(spec: PairSpec, primary: NodeName) -> Items:
    words = f"wait until the console says '{spec.guest.ready_line}'"
    return [act(primary, words, "under TCG a guest has to boot before it can be protected")]


def _launch_primary(spec: PairSpec, ground: Ground, node: NodeName, held: bool) -> Items:
    how = primary_command(spec, ground, node, paused=held)
    why = (
        "the guest waits, so that it boots as a protected one"
        if held
        else "the guest runs alone at first"
    )
    return [launch(node, how, why), *taps(spec, node, up=True)]


def _protect(
    spec: PairSpec,
    ground: Ground,
    primary: NodeName,
    delay_ms: int,
    *,
    protection: Protection,
    in_sync: bool,
) -> Items:
    node, first_ms = other(primary), first_delay_ms(spec, delay_ms)
    ours, theirs = (ground.node(one).binary.dialect for one in (primary, node))
    secondary = secondary_command(spec, ground, node)
    makes = [
        act(node, f"qemu-img create {path}", "")
        for overlay in blockdev.overlays(spec, node)
        for path in (overlay.active, overlay.hidden)
    ]
    wires = ground.wires(spec)
    at = wires.exports(node)
    tried = act(primary, f"connect to {at}", "a link that carries nothing would stop the guest")
    return [
        *([] if isinstance(at, SocketFile) else [tried]),
        *makes,
        launch(node, secondary, "an empty QEMU waits for the guest"),
        *taps(spec, node, up=False),
        *commands(node, plan.prepare_secondary(wires, node, theirs)),
        act(primary, f"connect to {at}, and hear the NBD server", ""),
        *_rebuilt(spec, primary, protection),
        *commands(primary, plan.connect_replicas(wires, node)),
        *_disks(spec, ground, primary, protection, in_sync=in_sync),
        *_open_stream(spec, primary, node),
        *commands(node, plan.receive(wires, node)),
        *commands(primary, plan.start_migration(wires, node, ours, first_ms)),
        *_held(primary, in_sync=in_sync),
        act(primary, "wait until the migration status is colo", ""),
        act(primary, "wait until the run state is running", "COLO is entered completely"),
        *commands(primary, plan.engage_filters(spec)),
        *commands(primary, plan.set_checkpoint_delay(first_ms)),
        act(primary, "wait for STOP, then RESUME", "one checkpoint with every filter on"),
    ]


def _held(primary: NodeName, *, in_sync: bool) -> Items:
    if in_sync:
        return []
    wait = act(primary, "wait until little of the guest's memory is left", "")
    return [wait, *commands(primary, plan.hold_guest())]


def _rebuilt(spec: PairSpec, primary: NodeName, protection: Protection) -> Items:
    if protection is Protection.DOWN or not spec.nics:
        return []
    why = "a failover removes the filters; where one was, they are built again"
    return [
        command(primary, qmp.qom_list("/objects"), why),
        act(primary, "chardev-add and object-add of each filter that is not there", ""),
    ]


def _disks(
    spec: PairSpec, ground: Ground, primary: NodeName, protection: Protection, *, in_sync: bool
) -> Items:
    """Make the disks equal: copy nothing, all on a start from nothing, else what differs."""
    if in_sync:
        return dialogue_disks.joined(spec, primary)
    if protection is Protection.DOWN:
        return dialogue_disks.mirrored(spec, primary)
    return dialogue_disks.compared(spec, ground, primary)


def _open_stream(spec: PairSpec, primary: NodeName, secondary: NodeName) -> Items:
    if spec.replication.stream is not MigrationTransport.FD:
        return []
    why = "a socket of ours, because one that delays small packets stalls checkpoints"
    return [
        command(secondary, qmp.getfd(MIGRATION_FD), why),
        command(primary, qmp.getfd(MIGRATION_FD), ""),
    ]


def _failover(
    spec: PairSpec, protection: Protection, primary: NodeName, to: NodeName | None
) -> Items:
    if protection not in (Protection.COLO, Protection.FAILOVER, Protection.FAILED):
        raise FailoverRefused(
            f"Pair {spec.name} is {protection}: no secondary holds a complete checkpoint of "
            "this generation.",
            hint=f"`coloctl wait {spec.name} --for colo` waits until one does",
        )
    survivor = to or other(primary)
    role = Role.PRIMARY if survivor == primary else Role.SECONDARY
    fence = [
        *taps(spec, other(survivor), up=False),
        act(other(survivor), "SIGKILL, and wait for the kernel's proof", "fencing comes first"),
    ]
    return fence + (
        _run_on_primary(spec, survivor)
        if role is Role.PRIMARY
        else _run_on_secondary(spec, survivor)
    )


def _run_on_primary(spec: PairSpec, node: NodeName) -> Items:
    return [
        *_yank(node, plan.peer_instances_primary(spec)),
        *commands(node, plan.release_primary(spec)),
        act(node, "wait until the run state is running", ""),
        *commands(node, plan.clear_primary(spec)),
    ]


def _run_on_secondary(spec: PairSpec, node: NodeName) -> Items:
    return [
        *commands(node, plan.note_merges(spec)),
        *_yank(node, plan.peer_instances_secondary(spec)),
        *taps(spec, node, up=True),
        *commands(node, plan.release_secondary(spec)),
        act(node, "wait until the run state is running", ""),
        *commands(node, plan.clear_secondary(spec)),
        *commands(node, plan.stay_when_off(stay=True)),
        act(node, "wait until the overlays are out of the block graph", "QEMU merges them"),
        *commands(node, (*overlay_plan.log_no_merges(), *plan.stay_when_off(stay=False))),
    ]


def _yank(node: NodeName, ours: list[dict[str, Any]]) -> Items:
    """Yank every connection to the peer; the verb yanks those alone that still exist."""
    return [
        command(node, qmp.query_yank(), "asked and yanked over the rescue monitor"),
        *commands(node, plan.yank_peer(ours, ours)),
    ]


def _stop(spec: PairSpec, protection: Protection, primary: NodeName) -> Items:
    if protection is Protection.DOWN:
        return []
    asked: Items = [
        *([act(primary, "guest-shutdown, to the guest's agent", "")] if spec.guest.agent else []),
        command(primary, qmp.system_powerdown(), "the guest shuts itself down"),
    ]
    lost = other(primary)
    if protection is Protection.COLO:
        return [
            *asked,
            act(primary, "wait until the guest is off, or for the deadline", ""),
            act(
                lost, "SIGKILL, and wait for the kernel's proof", "it never takes over from a stop"
            ),
            *taps(spec, lost, up=False),
            act(primary, "SIGKILL if it still runs", "the guest did not power off in time"),
            *taps(spec, primary, up=False),
        ]
    given_up = _give_up(spec, primary) if protection is not Protection.UNPROTECTED else []
    cut_off = act(primary, "wait for its end; SIGKILL at the deadline", "")
    return [*given_up, *asked, cut_off, *taps(spec, primary, up=False)]


def _checkpoint(spec: PairSpec, protection: Protection, primary: NodeName, delay_ms: int) -> Items:
    if protection is not Protection.COLO:
        raise NotProtected(f"Pair {spec.name} is {protection}, not in COLO.")
    return [
        *commands(primary, plan.set_checkpoint_delay(delay_ms)),
        act(primary, "wait for STOP, then RESUME", "setting the delay takes a checkpoint"),
    ]


def _set(now: PairSpec, protection: Protection, primary: NodeName, then: PairSpec) -> Items:
    """Change settings in QEMU; the others take effect at the next launch or protection."""
    items: Items = []
    rate = then.policy.mirror_rate
    if period(now) != period(then) and protection is Protection.COLO:
        items += _checkpoint(now, protection, primary, then.checkpoint.delay_ms)
    if comparison_limits(now) != comparison_limits(then) and protection is not Protection.DOWN:
        items += commands(primary, retune.limit_comparison(then))
    if now.policy.mirror_rate != rate and protection is Protection.RESYNC:
        items += commands(primary, retune.limit_mirrors(then, rate))
    return items

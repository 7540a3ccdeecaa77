"""What a verb would say to each node, as a list of steps; pure, and what ``--dry-run`` prints.

Every step names its node and has exactly one of ``launch`` (a command line), ``command`` (a QMP
command as it goes over the socket) and ``act`` (what coloctl itself does, in words).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coloctl.colo import plan
from coloctl.colo.launch import Ground, boots_alone, primary_command, secondary_command
from coloctl.colo.protect import first_delay_ms
from coloctl.errors import FailoverRefused, NotProtected, PairBusy, UsageError
from coloctl.machine import blockdev, cmdline
from coloctl.model.pair import Channel, NodeName, PairSpec, Role, other
from coloctl.model.protection import Protection
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import Step

Item = dict[str, Any]
Items = list[Item]


def dialogue(
    spec: PairSpec,
    ground: Ground,
    verb: str,
    protection: Protection,
    to: NodeName | None = None,
    *,
    primary: NodeName = "a",
    delay_ms: int | None = None,
    protect: bool = True,
    in_sync: bool = True,
) -> Items:
    """The steps of ``verb`` for a pair that is in ``protection`` now.

    ``primary`` is the node that runs the guest. ``in_sync``: the images of both nodes are known to
    be equal, which matters for a start from nothing only. Raises what the verb itself would raise
    at once, and `UsageError` for a verb that has no dialogue.
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
        "failover": lambda: _failover(spec, protection, primary, to),
        "stop": lambda: _stop(spec, protection, primary),
        "set": lambda: _set(spec, protection, primary, delay),
        "checkpoint": lambda: _set(spec, protection, primary, delay, only_in_colo=True),
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


def _begin(
    spec: PairSpec, ground: Ground, protection: Protection, primary: NodeName, *, held: bool
) -> Items:
    """The guest's QEMU, where none runs yet."""
    return _launch_primary(spec, ground, primary, held) if protection is Protection.DOWN else []


def _boot(spec: PairSpec, primary: NodeName) -> Items:
    words = f"wait until the console says '{spec.guest.ready_line}'"
    return [_act(primary, words, "under TCG a guest has to boot before it can be protected")]


def _launch_primary(spec: PairSpec, ground: Ground, node: NodeName, held: bool) -> Items:
    launch = primary_command(spec, ground, node, paused=held)
    why = (
        "the guest waits, so that it boots as a protected one"
        if held
        else "the guest runs alone at first"
    )
    return [_launch(node, launch, why), *_taps(spec, node, up=True)]


def _protect(
    spec: PairSpec,
    ground: Ground,
    primary: NodeName,
    delay_ms: int,
    *,
    protection: Protection,
    in_sync: bool,
) -> Items:
    node, dialect = other(primary), ground.binary.dialect
    first_ms = first_delay_ms(spec, delay_ms)
    secondary = secondary_command(spec, ground, node)
    makes = [
        _act(node, f"qemu-img create {path}", "")
        for overlay in blockdev.overlays(spec, ground.rundir(node))
        for path in (overlay.active, overlay.hidden)
    ]
    return [
        *makes,
        _launch(node, secondary, "an empty QEMU waits for the guest"),
        *_taps(spec, node, up=False),
        *_said(node, plan.prepare_secondary(spec, node, dialect)),
        *_rebuilt(spec, primary, protection),
        *_said(primary, plan.connect_replicas(spec, node)),
        *_join_disks(spec, primary, in_sync=in_sync),
        *_open_stream(spec, primary, node),
        *_said(node, plan.receive(spec, node)),
        *_said(primary, plan.start_migration(spec, node, dialect, first_ms)),
        *_held(primary, in_sync=in_sync),
        _act(primary, "wait until the migration status is colo", ""),
        _act(primary, "wait until the run state is running", "COLO is entered completely"),
        *_said(primary, plan.engage_filters(spec)),
        *_said(primary, plan.set_checkpoint_delay(first_ms)),
        _act(primary, "wait for STOP, then RESUME", "one checkpoint with every filter on"),
    ]


def _held(primary: NodeName, *, in_sync: bool) -> Items:
    if in_sync:
        return []
    wait = _act(primary, "wait until little of the guest's memory is left", "")
    return [wait, *_said(primary, plan.hold_guest())]


def _rebuilt(spec: PairSpec, primary: NodeName, protection: Protection) -> Items:
    if protection is Protection.DOWN or not spec.nics:
        return []
    why = "a failover removes the filters; where one was, they are built again"
    return [
        _command(primary, qmp.qom_list("/objects"), why),
        _act(primary, "chardev-add and object-add of each filter that is not there", ""),
    ]


def _join_disks(spec: PairSpec, primary: NodeName, *, in_sync: bool) -> Items:
    if in_sync:
        return _said(primary, plan.attach_replicas(spec))
    mirrored = [
        _act(primary, f"wait until job {plan.resync_job(i)} is ready", "")
        for i, _ in enumerate(spec.disks)
    ]
    finished = [item for i, _ in enumerate(spec.disks) for item in _finish_mirror(primary, i)]
    return [
        *_said(primary, plan.mirror_disks(spec)),
        *mirrored,
        _command(primary, qmp.stop(), "the last pass needs a guest that does not write"),
        *finished,
        *_said(primary, plan.attach_replicas(spec)),
        _command(primary, qmp.cont(), ""),
    ]


def _finish_mirror(primary: NodeName, disk: int) -> Items:
    job = plan.resync_job(disk)
    return [
        *_said(primary, plan.finish_mirror(disk)),
        _act(primary, f"wait until job {job} is concluded", ""),
        _command(primary, qmp.job_dismiss(job), ""),
    ]


def _open_stream(spec: PairSpec, primary: NodeName, secondary: NodeName) -> Items:
    if spec.replication.stream is not Channel.FD:
        return []
    why = "a socket of ours, because one that delays small packets stalls checkpoints"
    return [
        _command(secondary, qmp.getfd(plan.MIGRATION_FD), why),
        _command(primary, qmp.getfd(plan.MIGRATION_FD), ""),
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
        *_taps(spec, other(survivor), up=False),
        _act(other(survivor), "SIGKILL, and wait for the kernel's proof", "fencing comes first"),
    ]
    return fence + (
        _run_on_primary(spec, survivor)
        if role is Role.PRIMARY
        else _run_on_secondary(spec, survivor)
    )


def _run_on_primary(spec: PairSpec, node: NodeName) -> Items:
    return [
        *_yank(node, plan.peer_instances_primary(spec)),
        *_said(node, plan.release_primary(spec)),
        _act(node, "wait until the run state is running", ""),
        *_said(node, plan.clear_primary(spec)),
    ]


def _run_on_secondary(spec: PairSpec, node: NodeName) -> Items:
    return [
        *_yank(node, plan.peer_instances_secondary(spec)),
        *_taps(spec, node, up=True),
        *_said(node, plan.release_secondary(spec)),
        _act(node, "wait until the run state is running", ""),
        *_said(node, plan.clear_secondary(spec)),
    ]


def _yank(node: NodeName, ours: list[dict[str, Any]]) -> Items:
    """As if every connection to the peer still existed; those that do not are left out."""
    return [
        _command(node, qmp.query_yank(), "asked and yanked over the rescue monitor"),
        *_said(node, plan.yank_peer(ours, ours)),
    ]


def _stop(spec: PairSpec, protection: Protection, primary: NodeName) -> Items:
    if protection is Protection.DOWN:
        return []
    items: Items = []
    if protection is not Protection.UNPROTECTED:
        lost = other(primary)
        items = [
            *_taps(spec, lost, up=False),
            _act(lost, "SIGKILL, and wait for the kernel's proof", "it must not take over"),
            *_run_on_primary(spec, primary),
        ]
    return [
        *items,
        _command(primary, qmp.system_powerdown(), "the guest shuts itself down"),
        _act(primary, "wait for its end; SIGKILL at the deadline", ""),
        *_taps(spec, primary, up=False),
    ]


def _set(
    spec: PairSpec,
    protection: Protection,
    primary: NodeName,
    delay_ms: int,
    *,
    only_in_colo: bool = False,
) -> Items:
    if protection is Protection.COLO:
        return [
            *_said(primary, plan.set_checkpoint_delay(delay_ms)),
            _act(primary, "wait for STOP, then RESUME", "setting the delay takes a checkpoint"),
        ]
    if only_in_colo:
        raise NotProtected(f"Pair {spec.name} is {protection}, not in COLO.")
    return []


def _taps(spec: PairSpec, node: NodeName, *, up: bool) -> Items:
    return [
        _act(node, f"ip link set {nic.tap.ifname[node]} {'up' if up else 'down'}", "")
        for nic in spec.nics
        if nic.tap is not None
    ]


def _said(node: NodeName, steps: plan.Plan) -> Items:
    return [_step(node, step) for step in steps]


def _step(node: NodeName, step: Step) -> Item:
    return _command(node, step.command, step.why)


def _command(node: NodeName, command: qmp.Command, why: str) -> Item:
    return {"node": node, "command": command.wire(), "why": why}


def _launch(node: NodeName, launch: cmdline.Launch, why: str) -> Item:
    return {"node": node, "launch": launch.lines(), "why": why}


def _act(node: NodeName, words: str, why: str) -> Item:
    return {"node": node, "act": words, "why": why}

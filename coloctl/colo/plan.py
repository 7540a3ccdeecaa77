"""Build every QMP sequence of coloctl as a tuple of steps; pure, and what ``--dry-run`` prints.

Called by `colo.protect`, `ha.failover` and `supervisor.acts`; the commands are those of
`qmp.command`, which `qmp.sequence` runs. Sequences that compare disks are in
`colo.difference_plan`.

Invariant: the order inside each tuple was found the hard way (docs/qemu.md). Capabilities come
before ``migrate-incoming``, the NBD export before COLO starts, out-of-band yank before anything
that may drain a dead peer, ``nbd-server-stop`` before ``x-colo-lost-heartbeat`` on a secondary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coloctl.machine import blockdev, chardev, merge_log, netfilter
from coloctl.model.dialect import Dialect
from coloctl.model.pair import NodeName, PairSpec, other
from coloctl.model.tls import TlsWire
from coloctl.model.wires import Wires
from coloctl.qmp import command as qmp
from coloctl.qmp import tracing
from coloctl.qmp.sequence import Step

Plan = tuple[Step, ...]

#: Bytes per second at which less than one page is sent within a downtime of 1 ms.
NO_PAGE_PER_MS = 1_000_000
#: While the guest stands still its memory may take the whole link, bytes per second.
HELD_BANDWIDTH = 100 * 1024**3


def _steps(why: str, *commands: qmp.Command) -> Plan:
    return tuple(Step(command, why=why if n == 0 else "") for n, command in enumerate(commands))


def capabilities(spec: PairSpec, dialect: Dialect) -> Plan:
    """Make both sides agree on what the migration stream carries."""
    wanted = list(dialect.capabilities())
    if spec.replication.multifd_channels:
        wanted.append(("multifd", True))
    steps = list(
        _steps("capabilities must be equal on both sides", qmp.migrate_set_capabilities(wanted))
    )
    if spec.replication.multifd_channels:
        steps.append(
            Step(qmp.migrate_set_parameters(multifd_channels=spec.replication.multifd_channels))
        )
    return tuple(steps)


def prepare_secondary(wires: Wires, node: NodeName, dialect: Dialect) -> Plan:
    """Make the secondary export its disks and wait for the primary's memory."""
    spec, tls = wires.spec, wires.security(node)
    exports = [
        qmp.block_export_add(f"exp{i}", f"parent{i}", f"parent{i}", writable=True)
        for i, _ in enumerate(spec.disks)
    ]
    return (
        *capabilities(spec, dialect),
        *(_steps("from no other machine, over TLS", _server(tls)) if tls else ()),
        *_steps(
            "replication needs the export before COLO starts",
            qmp.nbd_server_start(wires.exports(node), tls.ids if tls else None),
            *exports,
        ),
    )


def _server(tls: TlsWire) -> qmp.Command:
    return qmp.migrate_set_parameters(**tls.ids.accepting)


def receive(wires: Wires, node: NodeName) -> Plan:
    """Make the secondary listen for the migration stream."""
    return _steps(
        "incoming is deferred so that capabilities come first",
        qmp.migrate_incoming(wires.migration_uri(node)),
    )


def connect_replicas(wires: Wires, secondary: NodeName) -> Plan:
    """Open the secondary's exports in the primary; it writes nothing to them yet."""
    at, tls = wires.exports(secondary), wires.security(other(secondary))
    return _steps(
        "the replica joins as an NBD client",
        *(
            qmp.blockdev_add(blockdev.nbd_client(i, at, tls=tls))
            for i, _ in enumerate(wires.spec.disks)
        ),
    )


def attach_replicas(spec: PairSpec) -> Plan:
    """Attach each replica to its quorum; from here on every guest write goes to both disks."""
    return _steps(
        "the quorum node writes to both children",
        *(qmp.x_blockdev_change(f"colo-disk{i}", node=f"nbd{i}") for i, _ in enumerate(spec.disks)),
    )


def start_migration(wires: Wires, secondary: NodeName, dialect: Dialect, delay_ms: int) -> Plan:
    """Send the primary's memory over; COLO begins where an ordinary migration would end.

    With next to no downtime allowed, it ends when nothing of a running guest is left to send, or
    once `hold_guest` has stopped the guest (docs/qemu.md, "Stale pages").
    """
    patience: dict[str, Any] = {"downtime_limit": 1}
    if tls := wires.security(other(secondary)):
        # A promoted QEMU has a server's parameters; a socket that it is given has no host name.
        patience |= {"tls_creds": tls.ids.client, "tls_hostname": tls.peer, "tls_authz": ""}
    if dialect.switchover_bandwidth:
        patience["avail_switchover_bandwidth"] = NO_PAGE_PER_MS
    return (
        *capabilities(wires.spec, dialect),
        *_steps(
            "the first checkpoints come with this period; no page may change in the last pass",
            qmp.migrate_set_parameters(x_checkpoint_delay=delay_ms, **patience),
            qmp.migrate(wires.migration_uri(secondary)),
        ),
    )


def hold_guest() -> Plan:
    """Stop the guest for the rest of its memory; COLO lets it run again."""
    return _steps(
        "pages that change in the last pass would be stale on the secondary",
        qmp.migrate_set_parameters(max_bandwidth=HELD_BANDWIDTH),
        qmp.stop(),
    )


def engage_filters(spec: PairSpec) -> Plan:
    """Switch the comparison of output on; the way back from the comparison opens first."""
    return tuple(
        Step(
            qmp.qom_set(f"/objects/{object_id}", "status", "on"),
            why="COLO runs: mirror, compare, release" if n == i == 0 else "",
        )
        for i, _ in enumerate(spec.nics)
        for n, object_id in enumerate(netfilter.engage_order(i))
    )


def set_checkpoint_delay(delay_ms: int) -> Plan:
    """Set the period to ``delay_ms``; in COLO this also takes a checkpoint at once."""
    return _steps("", qmp.migrate_set_parameters(x_checkpoint_delay=delay_ms))


def yank_peer(present: Iterable[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> Plan:
    """Cut every existing connection to the peer from outside the main loop.

    ``present`` is the answer of ``query-yank``: one absent instance makes QEMU refuse them all.
    """
    there = [instance for instance in present if instance in ours]
    if not there:
        return ()
    return _steps("nothing may wait for a dead peer", qmp.yank(there))


def peer_instances_primary(spec: PairSpec) -> list[dict[str, Any]]:
    """Return the connections of a primary to its secondary, as ``query-yank`` names them."""
    return [
        *({"type": "block-node", "node-name": f"nbd{i}"} for i, _ in enumerate(spec.disks)),
        {"type": "migration"},
        *(
            {"type": "chardev", "id": chardev_id}
            for i, _ in enumerate(spec.nics)
            for chardev_id in chardev.peer_ids_primary(i)
        ),
    ]


def peer_instances_secondary(spec: PairSpec) -> list[dict[str, Any]]:
    """Return the connections of a secondary to its primary, as ``query-yank`` names them."""
    return [
        {"type": "migration"},
        *(
            {"type": "chardev", "id": chardev_id}
            for i, _ in enumerate(spec.nics)
            for chardev_id in chardev.ids_secondary(i)
        ),
    ]


#: Answers of QEMU which mean that a clean-up step has nothing left to do.
GONE = ("DeviceNotFound", "not found", "Cannot find", "Failed to find", "does not have child")
#: ``x-colo-lost-heartbeat`` when COLO was already left, before and after 8.0 (43aef7e632).
NOT_IN_COLO = ("VM is not in COLO mode", "The feature 'colo' is not enabled")


def _drop_replicas(spec: PairSpec) -> Plan:
    """Remove the replicas from the quorum; first of all, because a drain may hang on one."""
    return tuple(
        Step(
            qmp.x_blockdev_change(f"colo-disk{i}", child="children.1"),
            why="the lost replica leaves the quorum" if i == 0 else "",
            tolerate=GONE,
        )
        for i, _ in enumerate(spec.disks)
    )


def _leave_colo() -> Plan:
    """Leave COLO: this side runs on alone."""
    return (
        Step(
            qmp.x_colo_lost_heartbeat(),
            why="the peer is proven dead: run on alone",
            tolerate=NOT_IN_COLO,
        ),
    )


def release_primary(spec: PairSpec) -> Plan:
    """Release the primary, after the yank: it runs on alone (docs/qemu.md, primary failover)."""
    return (*_drop_replicas(spec), *_leave_colo())


def clear_primary(spec: PairSpec) -> Plan:
    """Send held packets out, and remove all that belonged to the lost node from the primary's
    graphs.
    """
    return _remove(
        *(
            qmp.object_del(object_id)
            for i, _ in enumerate(spec.nics)
            for object_id in netfilter.primary_ids_teardown(i)
        ),
        *(qmp.blockdev_del(f"nbd{i}") for i, _ in enumerate(spec.disks)),
        *(
            qmp.chardev_remove(chardev_id)
            for i, _ in enumerate(spec.nics)
            for chardev_id in chardev.ids_primary(i)
        ),
    )


def note_merges(spec: PairSpec) -> Plan:
    """Let the secondary's QEMU note its merges, before anything can begin one.

    Beside the yank: it needs the main loop, which takes it as soon as the yank has freed it.
    """
    if not spec.disks:
        return ()
    return (
        Step(
            tracing.trace_event_set_state(merge_log.TRACE_EVENT, enable=True),
            why="which image has everything stands in its log from then on",
            tolerate=("",),  # the overlays' own marks are left
        ),
    )


def release_secondary(spec: PairSpec) -> Plan:
    """Promote the secondary, after the yank: its guest's output reaches its tap.

    ``rew0`` stays: it translates the connections that were open.
    """
    return (
        Step(
            qmp.nbd_server_stop(), why="before lost-heartbeat", tolerate=("NBD server not running",)
        ),
        *_leave_colo(),
        *_remove(
            *(
                qmp.object_del(object_id)
                for i, _ in enumerate(spec.nics)
                for object_id in netfilter.secondary_ids_teardown(i)
            )
        ),
    )


def stay_when_off(*, stay: bool) -> Plan:
    """Keep a QEMU whose guest powers itself off until its overlays are merged, or let it end at
    once.
    """
    why = "one that ended now would leave the merge to the next start" if stay else ""
    return _steps(why, qmp.set_action(shutdown="pause" if stay else "poweroff"))


def clear_secondary(spec: PairSpec) -> Plan:
    """Remove the connections to the lost primary, and announce the guest on the LAN for a minute.

    QEMU announces a promoted guest once by itself. A bridge port that only listens at that moment
    (STP) drops that frame, and QEMU does not repeat it.
    """
    announce = Step(
        qmp.announce_self(initial=50, max_=10_000, rounds=14, step=700),
        why="14 announcements over the next 64 s: a port may drop the first",
        tolerate=("",),  # the guest is reached without it, only later
    )
    return (
        *_remove(
            *(
                qmp.chardev_remove(chardev_id)
                for i, _ in enumerate(spec.nics)
                for chardev_id in chardev.ids_secondary(i)
            )
        ),
        *((announce,) if spec.nics else ()),
    )


def _remove(*commands: qmp.Command) -> Plan:
    return tuple(Step(command, tolerate=GONE) for command in commands)


def rebuild_filters(
    spec: PairSpec,
    node: NodeName,
    rundir: Path,
    *,
    behind_rewriter: bool,
    tls: TlsWire | None = None,
) -> Plan:
    """Add the chardevs and the (inactive) filters of a primary to a survivor again."""
    return (
        *(
            Step(qmp.chardev_add(backend.id, backend.backend()))
            for i, _ in enumerate(spec.nics)
            for backend in chardev.primary(spec, i, node, rundir, tls=tls)
        ),
        *(
            Step(qmp.object_add(properties))
            for i, _ in enumerate(spec.nics)
            for properties in netfilter.primary_filters(
                spec, i, status=False, behind_rewriter=behind_rewriter
            )
        ),
    )

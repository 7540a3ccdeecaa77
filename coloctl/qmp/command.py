"""QMP commands as values: built by pure functions, printed by ``--dry-run``, compared by tests.

Each function is named after its command, dashes as underscores, and takes only what coloctl sets.
Every one of them is checked against every stored schema by ``tests/unit/qmp/test_schema.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coloctl.model.wires import Address
from coloctl.qmp.value import Command as Command  # noqa: PLC0414  # most need both


def _command(name: str, /, *, oob: bool = False, **arguments: Any) -> Command:
    """``name`` with the arguments that are not None, underscores as dashes."""
    present = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in arguments.items()
        if value is not None
    }
    return Command(name, present, oob)


# -- the session and the binary


def qmp_capabilities(*, oob: bool = False) -> Command:
    return _command("qmp_capabilities", enable=["oob"] if oob else None)


def query_version() -> Command:
    return _command("query-version")


def query_qmp_schema() -> Command:
    return _command("query-qmp-schema")


def query_kvm() -> Command:
    return _command("query-kvm")


def query_machines() -> Command:
    return _command("query-machines")


# -- the guest


def query_status() -> Command:
    return _command("query-status")


def query_cpus_fast() -> Command:
    return _command("query-cpus-fast")


def info_registers() -> Command:
    """The registers of every processor, as text for people: QMP has no other word for them."""
    return _command("human-monitor-command", command_line="info registers -a")


def announce_self(*, initial: int, max_: int, rounds: int, step: int) -> Command:
    return _command("announce-self", initial=initial, max_=max_, rounds=rounds, step=step)


def stop() -> Command:
    return _command("stop")


def cont() -> Command:
    return _command("cont")


def quit() -> Command:
    return _command("quit")


def system_powerdown() -> Command:
    return _command("system_powerdown")


def set_action(*, shutdown: str) -> Command:
    """What QEMU does when its guest powers itself off: ``poweroff`` ends it, ``pause`` does not."""
    return _command("set-action", shutdown=shutdown)


def system_reset() -> Command:
    return _command("system_reset")


# -- migration and COLO


def migrate_set_capabilities(capabilities: Iterable[tuple[str, bool]]) -> Command:
    listed = [{"capability": name, "state": state} for name, state in capabilities]
    return _command("migrate-set-capabilities", capabilities=listed)


def query_migrate_capabilities() -> Command:
    return _command("query-migrate-capabilities")


def migrate_set_parameters(**parameters: Any) -> Command:
    """``x_checkpoint_delay=500`` (milliseconds) and the like.

    In COLO, setting the checkpoint delay also takes a checkpoint at once.
    """
    return _command("migrate-set-parameters", **parameters)


def query_migrate_parameters() -> Command:
    return _command("query-migrate-parameters")


def migrate(uri: str) -> Command:
    return _command("migrate", uri=uri)


def migrate_incoming(uri: str) -> Command:
    return _command("migrate-incoming", uri=uri)


def migrate_cancel() -> Command:
    return _command("migrate_cancel")


def query_migrate() -> Command:
    return _command("query-migrate")


def query_colo_status() -> Command:
    return _command("query-colo-status")


def x_colo_lost_heartbeat() -> Command:
    return _command("x-colo-lost-heartbeat")


def query_xen_replication_status() -> Command:
    """Despite its name the one query that reports errors of block replication, Xen or not."""
    return _command("query-xen-replication-status")


def query_yank(*, oob: bool = True) -> Command:
    return _command("query-yank", oob=oob)


def yank(instances: Iterable[Mapping[str, str]], *, oob: bool = True) -> Command:
    """Cuts the connections behind ``instances``; one that is absent makes QEMU refuse them all."""
    return _command("yank", instances=list(instances), oob=oob)


def getfd(name: str) -> Command:
    """Names the descriptor that travels with it (``Session.execute(..., fd=)``)."""
    return _command("getfd", fdname=name)


def closefd(name: str) -> Command:
    return _command("closefd", fdname=name)


# -- block devices


def blockdev_add(node: Mapping[str, Any]) -> Command:
    return Command("blockdev-add", node)


def blockdev_del(node: str) -> Command:
    return _command("blockdev-del", node_name=node)


def x_blockdev_change(parent: str, *, node: str | None = None, child: str | None = None) -> Command:
    """Adds ``node`` to a quorum, or takes ``child`` (``children.1``) out of it."""
    return _command("x-blockdev-change", parent=parent, node=node, child=child)


def nbd_server_start(at: Address) -> Command:
    """Serve exports at ``at``; QEMU removes the file of a unix socket when the server stops."""
    return _command("nbd-server-start", addr=at.wrapped())


def nbd_server_stop() -> Command:
    return _command("nbd-server-stop")


def block_export_add(
    export_id: str, node: str, name: str, *, writable: bool = True, bitmaps: Iterable[str] = ()
) -> Command:
    """Exports ``node`` as ``name`` on the NBD server that runs already, ``bitmaps`` beside it."""
    told = {"id": export_id, "type": "nbd", "node-name": node, "name": name, "writable": writable}
    shown = list(bitmaps)
    return Command("block-export-add", told | ({"bitmaps": shown} if shown else {}))


def block_export_del(export_id: str, *, mode: str | None = None) -> Command:
    return _command("block-export-del", id=export_id, mode=mode)


def query_block() -> Command:
    return _command("query-block")


def query_block_exports() -> Command:
    return _command("query-block-exports")


def block_dirty_bitmap_add(
    node: str, name: str, *, granularity: int, persistent: bool | None = None
) -> Command:
    """``name`` gets a bit for each ``granularity`` bytes of ``node`` written from now on.

    QEMU writes a ``persistent`` one into its qcow2 file when it closes that, and not before.
    """
    return _command(
        "block-dirty-bitmap-add",
        node=node,
        name=name,
        granularity=granularity,
        persistent=persistent,
    )


def block_dirty_bitmap_disable(node: str, name: str) -> Command:
    return _command("block-dirty-bitmap-disable", node=node, name=name)


def block_dirty_bitmap_remove(node: str, name: str) -> Command:
    return _command("block-dirty-bitmap-remove", node=node, name=name)


def query_named_block_nodes() -> Command:
    """Every node of the block graph, without the backing chains repeated in each."""
    return _command("query-named-block-nodes", flat=True)


def blockdev_mirror(
    job_id: str,
    device: str,
    target: str,
    sync: str = "full",
    *,
    speed: int | None = None,
    copy_mode: str | None = None,
) -> Command:
    """Copies ``device`` to ``target``; a bad target ends the job, a bad source sector does not.

    The job stays listed when it ends (``auto-dismiss`` off), so that its error can be read.
    ``speed`` is in bytes per second.
    """
    return _command(
        "blockdev-mirror",
        job_id=job_id,
        device=device,
        target=target,
        sync=sync,
        speed=speed,
        copy_mode=copy_mode,
        on_target_error="report",
        on_source_error="ignore",
        auto_dismiss=False,
    )


def block_job_cancel(job_id: str, *, force: bool | None = None) -> Command:
    """Ends a mirror in READY with a complete copy and no pivot; ``force`` throws the copy away."""
    return _command("block-job-cancel", device=job_id, force=force)


def block_job_set_speed(job_id: str, speed: int) -> Command:
    """``speed`` is in bytes per second; 0 is unlimited."""
    return _command("block-job-set-speed", device=job_id, speed=speed)


def job_dismiss(job_id: str) -> Command:
    return _command("job-dismiss", id=job_id)


def query_jobs() -> Command:
    return _command("query-jobs")


def query_block_jobs() -> Command:
    return _command("query-block-jobs")


def mark_written(node: str) -> Command:
    """Writes to the beginning of a block node that no guest uses; QEMU has no QMP for it."""
    line = f'qemu-io {node} "write -q -P 1 0 64k"'
    return _command("human-monitor-command", command_line=line)


# -- objects and character devices


def object_add(properties: Mapping[str, Any]) -> Command:
    """``properties`` with ``qom-type`` and ``id`` among them."""
    return Command("object-add", properties)


def object_del(object_id: str) -> Command:
    return _command("object-del", id=object_id)


def qom_set(path: str, property_: str, value: Any) -> Command:
    return Command("qom-set", {"path": path, "property": property_, "value": value})


def qom_get(path: str, property_: str) -> Command:
    return _command("qom-get", path=path, property=property_)


def qom_list(path: str) -> Command:
    return _command("qom-list", path=path)


def qom_list_properties(typename: str) -> Command:
    """Refused with ``DeviceNotFound`` where the build has no such type, whatever its schema says.

    Loads the module of that type alone, where ``qom-list-types`` loads every module in sight and
    takes QEMU down with one of another version.
    """
    return _command("qom-list-properties", typename=typename)


def chardev_add(chardev_id: str, backend: Mapping[str, Any]) -> Command:
    return _command("chardev-add", id=chardev_id, backend=backend)


def chardev_remove(chardev_id: str) -> Command:
    return _command("chardev-remove", id=chardev_id)


def query_chardev() -> Command:
    return _command("query-chardev")


# -- tracing


def trace_event_set_state(name: str, *, enable: bool) -> Command:
    return _command("trace-event-set-state", name=name, enable=enable)

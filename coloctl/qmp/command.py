"""Build QMP commands as values: pure functions; ``--dry-run`` prints them, and tests compare them.

Called wherever a command is sent, such as `colo.plan`, `ha.cutoff` and `vm`; an address is a
`model.wires` value. Each function is named after its command, with underscores for dashes, and
takes only what coloctl sets. tests/unit/qmp/test_qmp_schema.py checks all against every stored
schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coloctl.model.tls import TlsIds
from coloctl.model.wires import Address
from coloctl.qmp.value import Command as Command  # noqa: PLC0414  # most need both


def _command(name: str, /, *, oob: bool = False, **arguments: Any) -> Command:
    """Build ``name`` with the arguments that are not None, underscores as dashes."""
    present = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in arguments.items()
        if value is not None
    }
    return Command(name, present, oob)


# -- the session and the binary


def qmp_capabilities(*, oob: bool = False) -> Command:
    """Build `qmp_capabilities`."""
    return _command("qmp_capabilities", enable=["oob"] if oob else None)


def query_version() -> Command:
    """Build `query-version`."""
    return _command("query-version")


def query_qmp_schema() -> Command:
    """Build `query-qmp-schema`."""
    return _command("query-qmp-schema")


def query_machines() -> Command:
    """Build `query-machines`."""
    return _command("query-machines")


# -- the guest


def query_status() -> Command:
    """Build `query-status`."""
    return _command("query-status")


def query_cpus_fast() -> Command:
    """Build `query-cpus-fast`."""
    return _command("query-cpus-fast")


def info_registers() -> Command:
    """Build the question for the registers of all processors, as text: QMP has no other command."""
    return _command("human-monitor-command", command_line="info registers -a")


def announce_self(*, initial: int, max_: int, rounds: int, step: int) -> Command:
    """Build `announce-self`."""
    return _command("announce-self", initial=initial, max_=max_, rounds=rounds, step=step)


def stop() -> Command:
    """Build `stop`."""
    return _command("stop")


def cont() -> Command:
    """Build `cont`."""
    return _command("cont")


def quit() -> Command:
    """Build `quit`."""
    return _command("quit")


def system_powerdown() -> Command:
    """Build `system_powerdown`."""
    return _command("system_powerdown")


def set_action(*, shutdown: str) -> Command:
    """Build `set-action`: a guest that powers off ends QEMU (``poweroff``) or not (``pause``)."""
    return _command("set-action", shutdown=shutdown)


def system_reset() -> Command:
    """Build `system_reset`."""
    return _command("system_reset")


# -- migration and COLO


def migrate_set_capabilities(capabilities: Iterable[tuple[str, bool]]) -> Command:
    """Build `migrate-set-capabilities`."""
    listed = [{"capability": name, "state": state} for name, state in capabilities]
    return _command("migrate-set-capabilities", capabilities=listed)


def query_migrate_capabilities() -> Command:
    """Build `query-migrate-capabilities`."""
    return _command("query-migrate-capabilities")


def migrate_set_parameters(**parameters: Any) -> Command:
    """Build `migrate-set-parameters`: ``x_checkpoint_delay=500`` (milliseconds) and the like.

    In COLO, it also takes a checkpoint at once when it sets the checkpoint delay.
    """
    return _command("migrate-set-parameters", **parameters)


def migrate(uri: str) -> Command:
    """Build `migrate`."""
    return _command("migrate", uri=uri)


def migrate_incoming(uri: str) -> Command:
    """Build `migrate-incoming`."""
    return _command("migrate-incoming", uri=uri)


def query_migrate() -> Command:
    """Build `query-migrate`."""
    return _command("query-migrate")


def query_colo_status() -> Command:
    """Build `query-colo-status`."""
    return _command("query-colo-status")


def x_colo_lost_heartbeat() -> Command:
    """Build `x-colo-lost-heartbeat`."""
    return _command("x-colo-lost-heartbeat")


def query_yank(*, oob: bool = True) -> Command:
    """Build `query-yank`."""
    return _command("query-yank", oob=oob)


def yank(instances: Iterable[Mapping[str, str]], *, oob: bool = True) -> Command:
    """Build `yank`: cut connections; one instance that is absent makes QEMU refuse them all."""
    return _command("yank", instances=list(instances), oob=oob)


def getfd(name: str) -> Command:
    """Build `getfd`, which names the descriptor sent with it (``Session.execute(..., fd=)``)."""
    return _command("getfd", fdname=name)


# -- block devices


def blockdev_add(node: Mapping[str, Any]) -> Command:
    """Build `blockdev-add`."""
    return Command("blockdev-add", node)


def blockdev_del(node: str) -> Command:
    """Build `blockdev-del`."""
    return _command("blockdev-del", node_name=node)


def x_blockdev_change(parent: str, *, node: str | None = None, child: str | None = None) -> Command:
    """Build `x-blockdev-change`: add ``node`` to a quorum, or remove ``child`` (``children.1``)."""
    return _command("x-blockdev-change", parent=parent, node=node, child=child)


def nbd_server_start(at: Address, tls: TlsIds | None = None) -> Command:
    """Build `nbd-server-start`; QEMU removes the file of a unix socket when the server stops."""
    return _command("nbd-server-start", addr=at.wrapped(), **(tls.accepting if tls else {}))


def nbd_server_stop() -> Command:
    """Build `nbd-server-stop`."""
    return _command("nbd-server-stop")


def block_export_add(
    export_id: str, node: str, name: str, *, writable: bool = True, bitmaps: Iterable[str] = ()
) -> Command:
    """Build `block-export-add`: export ``node`` with ``bitmaps`` on the NBD server that runs."""
    told = {"id": export_id, "type": "nbd", "node-name": node, "name": name, "writable": writable}
    shown = list(bitmaps)
    return Command("block-export-add", told | ({"bitmaps": shown} if shown else {}))


def block_export_del(export_id: str, *, mode: str | None = None) -> Command:
    """Build `block-export-del`."""
    return _command("block-export-del", id=export_id, mode=mode)


def query_block() -> Command:
    """Build `query-block`."""
    return _command("query-block")


def query_block_exports() -> Command:
    """Build `query-block-exports`."""
    return _command("query-block-exports")


def block_dirty_bitmap_add(
    node: str, name: str, *, granularity: int, persistent: bool | None = None
) -> Command:
    """Build `block-dirty-bitmap-add`: a bit for each ``granularity`` bytes of ``node`` written from
    then.

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
    """Build `block-dirty-bitmap-disable`."""
    return _command("block-dirty-bitmap-disable", node=node, name=name)


def block_dirty_bitmap_remove(node: str, name: str) -> Command:
    """Build `block-dirty-bitmap-remove`."""
    return _command("block-dirty-bitmap-remove", node=node, name=name)


def query_named_block_nodes() -> Command:
    """Build the query for every block node, without the backing chains repeated in each."""
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
    """Build `blockdev-mirror`: copy ``device`` to ``target``, at ``speed`` bytes per second.

    A bad target ends the job, a bad source sector does not. The job stays listed when it ends
    (``auto-dismiss`` off), so that its error can be read.
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
    """Build `block-job-cancel`: end a READY mirror without a pivot; ``force`` drops the copy."""
    return _command("block-job-cancel", device=job_id, force=force)


def block_job_set_speed(job_id: str, speed: int) -> Command:
    """Build `block-job-set-speed`; ``speed`` is in bytes per second, 0 is unlimited."""
    return _command("block-job-set-speed", device=job_id, speed=speed)


def job_dismiss(job_id: str) -> Command:
    """Build `job-dismiss`."""
    return _command("job-dismiss", id=job_id)


def query_jobs() -> Command:
    """Build `query-jobs`."""
    return _command("query-jobs")


def mark_written(node: str) -> Command:
    """Build a write to the beginning of a block node without a guest; QMP has no command for it."""
    line = f'qemu-io {node} "write -q -P 1 0 64k"'
    return _command("human-monitor-command", command_line=line)


# -- objects and character devices


def object_add(properties: Mapping[str, Any]) -> Command:
    """Build `object-add`; ``properties`` hold ``qom-type`` and ``id``."""
    return Command("object-add", properties)


def object_del(object_id: str) -> Command:
    """Build `object-del`."""
    return _command("object-del", id=object_id)


def qom_set(path: str, property_: str, value: Any) -> Command:
    """Build `qom-set`."""
    return Command("qom-set", {"path": path, "property": property_, "value": value})


def qom_list(path: str) -> Command:
    """Build `qom-list`."""
    return _command("qom-list", path=path)


def qom_list_properties(typename: str) -> Command:
    """Build `qom-list-properties`: ``DeviceNotFound`` for a type of another build, in no schema.

    It loads the module of one type. ``qom-list-types`` loads all, and one of another version ends
    QEMU.
    """
    return _command("qom-list-properties", typename=typename)


def chardev_add(chardev_id: str, backend: Mapping[str, Any]) -> Command:
    """Build `chardev-add`."""
    return _command("chardev-add", id=chardev_id, backend=backend)


def chardev_remove(chardev_id: str) -> Command:
    """Build `chardev-remove`."""
    return _command("chardev-remove", id=chardev_id)


def query_chardev() -> Command:
    """Build `query-chardev`."""
    return _command("query-chardev")

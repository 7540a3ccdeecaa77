"""Translate QEMU's events that decide something into notices of `model.observation`; pure.

Called by `supervisor.heartbeat_driver` for every event; recognizes replicas by the names of
`machine.blockdev`. An event that is no notice decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coloctl.machine import blockdev
from coloctl.model.observation import Notice

#: A guest that is reset begins again, by whichever order; the resets of a secondary that loads a
#: checkpoint have no event (docs/qemu.md, "How a guest ends in COLO").
_OF_THE_GUEST = {"RESET": Notice.GUEST_RESET, "GUEST_PANICKED": Notice.GUEST_PANIC}


def notice_of(name: str, data: Mapping[str, Any]) -> Notice | None:
    """Return the notice that the event is; None for one that decides nothing."""
    if name == "COLO_EXIT":
        return Notice.COLO_EXIT if data.get("reason") == "error" else None
    if name == "QUORUM_REPORT_BAD":
        return _bad_child(str(data.get("node-name", "")), data.get("type") == "read")
    if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
        return Notice.GUEST_HELD
    if name == "BLOCK_IO_ERROR":
        return _local_error(data.get("operation") == "read")
    if name == "SHUTDOWN":  # one that a command asked for, or a signal, is no news of the guest
        return Notice.GUEST_SHUTDOWN if data.get("guest") else None
    return _OF_THE_GUEST.get(name)


def _bad_child(child: str, read: bool) -> Notice | None:
    """Return the notice of a bad child of the quorum.

    A replica that cannot be read missed no write, and the guest does not read from it.
    """
    if blockdev.is_replica(child):
        return None if read else Notice.REPLICA_WRITE_ERROR
    return _local_error(read)


def _local_error(read: bool) -> Notice:
    return Notice.LOCAL_READ_ERROR if read else Notice.LOCAL_WRITE_ERROR

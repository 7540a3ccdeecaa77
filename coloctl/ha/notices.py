"""QEMU's events that decide something, in the words of `model.observation.NOTICES`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coloctl.machine import blockdev

#: QEMU's own resets and shutdowns, those of an operator's commands say, decide nothing.
_ASKED_BY_GUEST = {"SHUTDOWN": "guest-shutdown", "RESET": "guest-reset"}


def notice_of(name: str, data: Mapping[str, Any]) -> str | None:
    """The notice that the event is, or None: it decides nothing."""
    if name == "COLO_EXIT":
        return "colo-exit" if data.get("reason") == "error" else None
    if name == "QUORUM_REPORT_BAD":
        return _bad_child(str(data.get("node-name", "")), data.get("type") == "read")
    if name == "BLOCK_IO_ERROR":
        return "local-read-error" if data.get("operation") == "read" else "local-write-error"
    if name == "GUEST_PANICKED":
        return "guest-panic"
    return _ASKED_BY_GUEST.get(name) if data.get("guest") else None


def _bad_child(child: str, read: bool) -> str | None:
    """A replica that cannot be read missed nothing, and nobody reads it."""
    if blockdev.is_replica(child):
        return None if read else "replica-write-error"
    return "local-read-error" if read else "local-write-error"

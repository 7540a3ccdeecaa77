"""Build the commands by which a QEMU writes its trace events to a file, as in `qmp.command`.

Called by `colo.plan` and `colo.overlay_plan`. Invariant: neither of them changes the guest or its
disks.
"""

from __future__ import annotations

from coloctl.qmp.value import Command


def set_log_file(path: str) -> Command:
    """Build the order to write QEMU's log to a file from now on; QMP has no other command.

    A path with a percent sign is not taken, and QEMU answers so without an error.
    """
    quoted = path.replace("\\", "\\\\").replace('"', '\\"')
    return Command("human-monitor-command", {"command-line": f'logfile "{quoted}"'})


def trace_event_set_state(name: str, *, enable: bool) -> Command:
    """Build `trace-event-set-state`; a QEMU that was built without the event takes it too."""
    return Command(
        "trace-event-set-state", {"name": name, "enable": enable, "ignore-unavailable": True}
    )

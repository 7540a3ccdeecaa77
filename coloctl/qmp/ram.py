"""Build the commands that read a guest's memory, as values like those of `qmp.command`.

Called by `colo.pages` and `supervisor.dialogue_disks`. Invariant: none of them changes the guest.
"""

from __future__ import annotations

from coloctl.qmp.value import Command


def info_mtree() -> Command:
    """Build the question for the flat views of memory, as text for people: QMP has no other
    command.
    """
    return Command("human-monitor-command", {"command-line": "info mtree -f"})


def query_memory_size_summary() -> Command:
    """Build `query-memory-size-summary`."""
    return Command("query-memory-size-summary")


def pmemsave(begin: int, length: int, filename: str) -> Command:
    """Build `pmemsave`: write guest-physical memory to a file that QEMU opens.

    The main loop is held meanwhile.
    """
    return Command("pmemsave", {"val": begin, "size": length, "filename": filename})


def add_fd(fdset: int) -> Command:
    """Build `add-fd`: keep the descriptor sent with it in a set, and return its number in QEMU."""
    return Command("add-fd", {"fdset-id": fdset})


def remove_fd(fdset: int) -> Command:
    """Build `remove-fd`."""
    return Command("remove-fd", {"fdset-id": fdset})

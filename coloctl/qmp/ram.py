"""The commands that read a guest's memory, as values; built and checked like those of `command`.

Called by `colo.pages` and `supervisor.dialogue_disks`. Invariant: none of them changes the guest.
"""

from __future__ import annotations

from coloctl.qmp.value import Command


def info_mtree() -> Command:
    """The flat views of memory, as text for people: QMP has no other word for them."""
    return Command("human-monitor-command", {"command-line": "info mtree -f"})


def query_memory_size_summary() -> Command:
    return Command("query-memory-size-summary")


def pmemsave(begin: int, length: int, filename: str) -> Command:
    """Write guest-physical memory to a file that QEMU opens; the main loop is held meanwhile."""
    return Command("pmemsave", {"val": begin, "size": length, "filename": filename})


def add_fd(fdset: int) -> Command:
    """Keep the descriptor that travels with it in a set, and tell its number in QEMU."""
    return Command("add-fd", {"fdset-id": fdset})


def remove_fd(fdset: int) -> Command:
    return Command("remove-fd", {"fdset-id": fdset})

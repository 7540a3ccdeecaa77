"""Say what to type about a supervisor that does not answer: which process it is, and how it stands.

Called by `control.client` when its patience is over. Looks at /proc, so it costs some milliseconds.
"""

from __future__ import annotations

from pathlib import Path

from coloctl import procfs
from coloctl.errors import DeadlineMissed


def silent(path: Path, pair: str, sentence: str) -> DeadlineMissed:
    """Make the error for the supervisor at ``path``; ``sentence`` says what it did not do."""
    pid, state, watched = _supervisor(path)
    if not pid:
        return DeadlineMissed(f"The supervisor of {pair} {sentence}", hint="try again")
    again = "its watcher starts" if watched else "`coloctl start SPEC --adopt` starts"
    ends = f"`kill -KILL {pid}` ends it alone, the guest runs on, and {again} another"
    if state == "T":
        return DeadlineMissed(
            f"The supervisor of {pair} (process {pid}) is stopped and answers nothing.",
            hint=f"`kill -CONT {pid}` lets it go on (after Ctrl-Z `fg` does); {ends}",
        )
    return DeadlineMissed(
        f"The supervisor of {pair} (process {pid}) {sentence}",
        hint=f"it may be very busy: try again; {ends}",
    )


def _supervisor(path: Path) -> tuple[int, str, bool]:
    """Find its pid, its state, and whether a watcher has started it; 0 where it is unknown.

    Both serve ``path``: the watcher holds the socket too, and is the supervisor's parent.
    """
    names = {procfs.socket_name(inode) for inode in procfs.listeners([path]).values()}
    found = {pid: procfs.read_stat(pid) for pid in procfs.holding(names)} if names else {}
    for pid, stat in found.items():
        if stat is not None and (stat.parent in found or len(found) == 1):
            return pid, stat.state, stat.parent in found
    return 0, "", False

"""Read the log in which a promoted secondary's QEMU notes what becomes of its merges.

Called by `colo.overlays` for disks whose merge was not followed to its end. From the promotion on,
QEMU writes a line in the moment in which a job's state changes (its trace event
``job_state_transition``; docs/qemu.md, "The merge of a promoted secondary").

A merge is such a job. It becomes ``waiting`` when the image holds everything, has been flushed, and
the guest's writes are still held back; then QEMU puts the image in the overlays' place. So the line
is there before the guest can write to the image alone, however QEMU ends after that. A job that
fails or is cancelled, also by an orderly end of QEMU, becomes ``aborting``.
"""

from __future__ import annotations

import re

#: The trace event, by the name that 7.2, 10.0 and 11.1 give it.
TRACE_EVENT = "job_state_transition"

#: One line: the job's address, and the state that it enters.
_LINE = re.compile(TRACE_EVENT + r" job (0x[0-9a-f]+) .*-->([a-z]+)\)$")


def merged(log: str, disks: int) -> frozenset[int] | None:
    """Return the numbers of the disks, of ``disks``, that QEMU has merged; None: not known.

    QEMU begins the merge of the last disk first. A log without a merge shows nothing: that QEMU may
    have no trace events. Nor does one with more jobs than disks, because others began them.
    """
    entered: list[str] = []  # the last known state of each job that began here, in their order
    numbers: dict[str, int] = {}  # by address, which a later job may have again
    for line in log.splitlines():
        found = _LINE.search(line)
        if found is None:
            continue
        job, state = found.groups()
        if state == "created":
            numbers[job] = len(entered)
            entered.append(state)
        elif job in numbers and state in ("waiting", "aborting"):
            entered[numbers[job]] = state
    if not 0 < len(entered) <= disks:
        return None
    return frozenset(disks - 1 - n for n, state in enumerate(entered) if state == "waiting")

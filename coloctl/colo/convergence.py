"""Wait until little of a guest's memory must be sent, and give up a link that is too slow for it.

Called by `colo.protect` in a migration; asks the primary by `qmp.wait` and takes its figures.

Rules: the first pass sends all memory once, and takes as long as the link needs for that: it is
waited for while data goes over. After it, what is left has to go over while the guest stands still.
A guest that would stand still for more than `STILL_MAX_S` is not stopped at all, because every
checkpoint would stop it as long. Example: 2 GB change again and again, and the link carries
110 MB/s: each checkpoint would take 18 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from coloctl.clock import Deadline
from coloctl.errors import DeadlineMissed, MigrationFailed
from coloctl.qmp import command as qmp
from coloctl.qmp.wait import until_little_memory_left
from coloctl.vm import VM

#: The longest a guest may stand still for what is left of its memory, seconds.
STILL_MAX_S = 10.0
#: Bytes of the guest's memory that may be left when it is held for the rest: a few milliseconds.
LITTLE_BYTES = 4 * 1024 * 1024
#: After so long it is looked at what is left, seconds.
CONVERGE_DEADLINE_S = 120.0
_ANSWER_WAIT_S = 30.0
_MB = 1e6


@dataclass(frozen=True)
class MemoryFlow:
    """The memory that a migration sends, and that the guest changes meanwhile."""

    passes: int  #: 1 while all memory is sent for the first time
    left: int  #: bytes that must be sent
    changed: float  #: bytes that the guest changes per second
    carried: float  #: bytes that the link carries per second; 0: nothing was measured

    @property
    def first_pass(self) -> bool:
        """True while some memory was never sent, and data goes over."""
        return self.passes < 2 and self.carried > 0

    @property
    def too_slow(self) -> bool:
        """True where the guest would stand still for too long."""
        return self.left > self.carried * STILL_MAX_S

    def sentence(self, link: str) -> str:
        """Return the figures as sentences; ``link`` names the link.

        A page that was changed twice between two looks counts once, so what is changed per second
        can be less than what the link carries. That figure is left out then: it explains nothing.
        """
        still = f"for {self.left / self.carried:.0f} s" if self.carried else "for good"
        left = f"{self.left / _MB:.0f} MB"
        changes = f"{left} of its memory again and again"
        if self.changed > self.carried:
            changes = f"{self.changed / _MB:.0f} MB/s of its memory, and {left} were left to send"
        return (
            f"{link} carries {self.carried / _MB:.0f} MB/s. The guest changes {changes}: each "
            f"checkpoint would stop it {still}."
        )


def flow(answer: Mapping[str, Any]) -> MemoryFlow:
    """Read an answer to `query-migrate`."""
    ram = answer.get("ram") or {}
    page = int(ram.get("page-size", 4096))
    return MemoryFlow(
        int(ram.get("dirty-sync-count", 0)),
        int(ram.get("remaining", 0)),
        float(ram.get("dirty-pages-rate", 0)) * page,
        float(ram.get("mbps", 0)) * _MB / 8,
    )


class Passes:
    """The flow of one migration, pass by pass.

    What is left falls within a pass, and a look in its middle shows less than the guest would wait
    for. So the most of this pass and of the one before count.
    """

    def __init__(self) -> None:
        self._number, self._most, self._before = 0, 0, 0

    def look(self, answer: Mapping[str, Any]) -> MemoryFlow:
        """Note an answer to `query-migrate`, and return the flow that it shows."""
        seen = flow(answer)
        if seen.passes != self._number:
            # What is left in the first pass is all memory, changed or not.
            self._before = self._most if self._number > 1 else 0
            self._number, self._most = seen.passes, 0
        self._most = max(self._most, seen.left)
        return replace(seen, left=max(self._most, self._before))


async def converge(primary: VM, secondary: VM, deadline: Deadline) -> None:
    """Wait until little of the memory is left, or as much as the guest may stand still for.

    Raises `MigrationFailed` where the link is too slow for what the guest changes.
    """
    monitor, passes = primary.monitor, Passes()
    while True:
        limit_s = deadline.at_most(CONVERGE_DEADLINE_S)
        try:
            return await until_little_memory_left(monitor, LITTLE_BYTES, limit_s, passes.look)
        except DeadlineMissed:
            seen = passes.look(await monitor.execute(qmp.query_migrate(), _ANSWER_WAIT_S))
        if seen.first_pass and deadline.remaining() > 0:
            continue
        if not seen.too_slow:
            return None
        here, host = primary.host.machine.name, secondary.host.machine.name
        raise MigrationFailed(
            seen.sentence(f"The link to node {secondary.node} on {host}"),
            stage="migrating",
            hint=f"`coloctl host check {host} --peer {here}` measures the link; or try again when"
            " the guest changes less",
        )

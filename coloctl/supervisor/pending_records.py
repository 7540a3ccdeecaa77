"""Keep records that the journal could not take yet, in order, until it can.

`supervisor.state` appends to the `journal` through this.

Invariant: a record is never written before one that was appended earlier, so a durable record on
the disk is a sign that all before it are there too. A record that a later supervisor must know
before an act may go on is refused instead (`must_last`).
"""

from __future__ import annotations

import logging
from collections import deque

from coloctl.errors import PreconditionFailed
from coloctl.journal import Journal
from coloctl.model.event import Kind, Record

log = logging.getLogger(__name__)

#: Records kept while nothing can be written: those of some ten failovers, about 1 KiB each. The
#: oldest give way, because the latest state is what a later supervisor decides by.
KEPT_MAX = 500

#: Acts that save or end the guest: a journal that cannot be written holds up none of them.
RESCUES = frozenset({"failover", "stop", "adopt"})


def must_last(record: Record) -> bool:
    """Return whether nothing may follow before ``record`` is on the disk.

    This holds for all that an act decides, unless that act saves or ends the guest. An observation,
    and a state that follows from it, is true whether it is recorded or not.
    """
    if record.kind in (Kind.OBSERVATION, Kind.NOTE):
        return False
    return record.act not in RESCUES if record.act else record.kind is not Kind.STATE


class PendingRecords:
    """The journal of one pair, and the records that it could not take yet."""

    def __init__(self, journal: Journal, kept_max: int = KEPT_MAX) -> None:
        self.problem = ""  #: why the journal cannot be written; empty when it can
        self.dropped = 0  #: records that gave way
        self._journal, self._kept_max = journal, kept_max
        self._owed: deque[Record] = deque()

    def __len__(self) -> int:
        return len(self._owed)

    def append(self, record: Record) -> None:
        """Write ``record`` after all pending ones; or keep it until there is room.

        Raises `PreconditionFailed` where it `must_last` and cannot be written.
        """
        try:
            self._settle()
            self._journal.append(record)
        except PreconditionFailed as error:
            self._tell(error.message)
            if must_last(record):
                raise
            self._keep(record)

    def settle(self) -> None:
        """Write the pending records, as far as there is room."""
        try:
            self._settle()
        except PreconditionFailed as error:
            self._tell(error.message)

    def sentence(self) -> str:
        """Return what is not recorded, for people; empty when everything is."""
        if not self.problem:
            return ""
        return (
            f"{self.problem} Until there is room, nothing new is begun, failover and stop work, "
            "and what happens is kept in memory."
        )

    def _settle(self) -> None:
        while self._owed:
            self._journal.append(self._owed[0])
            self._owed.popleft()
        self.problem = ""

    def _keep(self, record: Record) -> None:
        self._owed.append(self._journal.stamped(record))
        while len(self._owed) > self._kept_max:
            self._owed.popleft()
            self.dropped += 1

    def _tell(self, problem: str) -> None:
        """Log another problem than before; a note of it is kept, which shows when it is over."""
        if problem != self.problem:
            log.error("%s", problem)
            self.problem = problem
            self._keep(Record(Kind.NOTE, data={"not-written": problem}))

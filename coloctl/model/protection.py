"""Define how protected a pair is: the states, the facts that change it, the one table of moves.

Used by every layer. A supervisor passes a fact to `advance` and gets the next state: in ``colo``
the fact ``node-lost`` leads to ``failover``, and ``survivor-runs`` from there to ``unprotected``.

Invariant: only `advance` yields a new `Protection`, and `advance` is total. A fact that the
table does not list for a state leaves the state alone, and ``Transition.listed`` is False.

*Paused* (automatic failover off), *impaired* and *fencing* are axes of their own in `model.view`;
they never become states here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Protection(StrEnum):
    """The states; the values are what people type and read."""

    DOWN = "down"  #: no QEMU of the pair runs
    UNPROTECTED = "unprotected"  #: the guest runs alone; a crash loses it
    RESYNC = "resync"  #: disks are being copied to the secondary
    MIGRATING = "migrating"  #: first full migration, up to the first completed checkpoint
    COLO = "colo"  #: protected
    FAILOVER = "failover"  #: one side is lost; a survivor is, or waits to be, promoted
    FAILED = "failed"  #: fencing or promotion failed: only an operator leaves it


class Fact(StrEnum):
    """Event that may change how protected a pair is."""

    GUEST_STARTED = "guest-started"  #: the primary runs the guest, without a secondary
    RESYNC_BEGAN = "resync-began"
    MIGRATION_BEGAN = "migration-began"
    CHECKPOINT_COMPLETED = "checkpoint-completed"  #: the first one with all filters on
    PROTECTION_ABANDONED = "protection-abandoned"  #: the secondary was given up before COLO
    NODE_LOST = "node-lost"  #: one side of a pair in COLO is dead, frozen or cut off
    SURVIVOR_RUNS = "survivor-runs"  #: fenced, promoted, verified
    FAILOVER_FAILED = "failover-failed"  #: no proof of death, or the guest did not run on alone
    GUEST_GONE = "guest-gone"  #: the last QEMU that ran the guest is gone
    OPERATOR_STOPPED = "operator-stopped"
    OPERATOR_CLEARED = "operator-cleared"  #: a person confirmed that the survivor may run on


_P = Protection
_F = Fact

#: Everything that can happen, in the order in which a pair lives through it.
MOVES: Mapping[tuple[Protection, Fact], Protection] = {
    (_P.DOWN, _F.GUEST_STARTED): _P.UNPROTECTED,
    (_P.DOWN, _F.MIGRATION_BEGAN): _P.MIGRATING,
    (_P.UNPROTECTED, _F.RESYNC_BEGAN): _P.RESYNC,
    (_P.UNPROTECTED, _F.MIGRATION_BEGAN): _P.MIGRATING,
    (_P.UNPROTECTED, _F.GUEST_GONE): _P.DOWN,
    (_P.UNPROTECTED, _F.OPERATOR_STOPPED): _P.DOWN,
    (_P.RESYNC, _F.MIGRATION_BEGAN): _P.MIGRATING,
    (_P.RESYNC, _F.PROTECTION_ABANDONED): _P.UNPROTECTED,
    (_P.RESYNC, _F.FAILOVER_FAILED): _P.FAILED,
    (_P.RESYNC, _F.GUEST_GONE): _P.DOWN,
    (_P.RESYNC, _F.OPERATOR_STOPPED): _P.DOWN,
    (_P.MIGRATING, _F.CHECKPOINT_COMPLETED): _P.COLO,
    (_P.MIGRATING, _F.PROTECTION_ABANDONED): _P.UNPROTECTED,
    (_P.MIGRATING, _F.FAILOVER_FAILED): _P.FAILED,
    (_P.MIGRATING, _F.GUEST_GONE): _P.DOWN,
    (_P.MIGRATING, _F.OPERATOR_STOPPED): _P.DOWN,
    (_P.COLO, _F.NODE_LOST): _P.FAILOVER,
    (_P.COLO, _F.GUEST_GONE): _P.DOWN,
    (_P.COLO, _F.OPERATOR_STOPPED): _P.DOWN,
    (_P.FAILOVER, _F.SURVIVOR_RUNS): _P.UNPROTECTED,
    (_P.FAILOVER, _F.FAILOVER_FAILED): _P.FAILED,
    (_P.FAILOVER, _F.GUEST_GONE): _P.DOWN,
    (_P.FAILOVER, _F.OPERATOR_STOPPED): _P.DOWN,
    (_P.FAILED, _F.OPERATOR_CLEARED): _P.UNPROTECTED,
    (_P.FAILED, _F.OPERATOR_STOPPED): _P.DOWN,
}


@dataclass(frozen=True)
class Transition:
    """One application of the table."""

    before: Protection
    fact: Fact
    after: Protection
    listed: bool  #: False: the table does not foresee this, and the state stayed as it was

    def sentence(self) -> str:
        """Describe the transition for the journal."""
        if not self.listed:
            return f"{self.fact} means nothing while {self.before}; the state stays."
        return f"{self.before} -> {self.after} because {self.fact}."


def advance(state: Protection, fact: Fact) -> Transition:
    """Return the transition that ``fact`` makes from ``state``; never raises."""
    after = MOVES.get((state, fact))
    if after is None:
        return Transition(state, fact, state, listed=False)
    return Transition(state, fact, after, listed=True)

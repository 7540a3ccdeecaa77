"""Infer from the QEMUs that run what a pair is, where its journal knows none of them; pure.

Called by `supervisor.adopt` for QEMUs that live beside an empty journal: it was moved away, or is
another one. Uses the last claim of `ha.arbiter` and the disk records of `colo.generation`.

Invariant: a process that may run a guest is kept or refused, never ended. A secondary is taken for
one that holds the whole guest only where both nodes' images say so.
"""

from __future__ import annotations

from collections.abc import Mapping

from coloctl.colo.generation import Companions, Worth, reached
from coloctl.errors import PreconditionFailed
from coloctl.ha.arbiter import Claim
from coloctl.model.pair import NODES, NodeName, Role, other
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, RunState
from coloctl.supervisor.reconcile import Belief, FoundQemu, KnownQemu

#: Run states of a QEMU whose guest has not begun there.
_WITHOUT_GUEST = frozenset({RunState.PRELAUNCH, RunState.INMIGRATE})

REASON = "The journal was lost; the pair was taken over as it was found."


def infer_belief(
    name: str,
    launches: Mapping[NodeName, KnownQemu],
    found: Mapping[NodeName, FoundQemu],
    companions: Companions | None,
    claim: Claim | None,
) -> Belief:
    """Infer the state of the pair ``name`` from its living QEMUs, its images and its last claim.

    ``companions`` is None where the images' records cannot be read. Raises `PreconditionFailed`
    naming the processes where it cannot be determined which of them runs the guest.
    """
    living = {node: launches[node] for node in NODES if found[node].alive and node in launches}
    if silent := [node for node in living if found[node].run_state is None]:
        raise _refused(name, living, f"{_processes(living, silent)} does not answer its monitor")
    number = max(
        claim.generation if claim else 0,
        *(reached(companions[node]) if companions else 0 for node in NODES),
    )
    owners = [node for node in living if _has_guest(found[node])]
    if len(owners) > 1:
        raise _refused(name, living, f"both {_processes(living, owners)} run a guest")
    if not owners:
        return _without_owner(name, living, found, number)
    (owner,) = owners
    return Belief(
        protection=_protection(owner, found, companions, number),
        reason=REASON,
        generation=number,
        launches={
            node: KnownQemu(Role.PRIMARY if node == owner else Role.SECONDARY, one.identity)
            for node, one in living.items()
        },
        protection_wanted=True,
    )


def _has_guest(one: FoundQemu) -> bool:
    """Return whether it runs the pair's guest, not a copy that waits for its promotion."""
    if one.colo_mode is COLOMode.SECONDARY:
        return False
    return one.colo_mode is COLOMode.PRIMARY or one.run_state not in _WITHOUT_GUEST


def _protection(
    owner: NodeName, found: Mapping[NodeName, FoundQemu], companions: Companions | None, number: int
) -> Protection:
    peer = other(owner)
    if not found[peer].alive and found[owner].colo_mode is COLOMode.NONE:
        return Protection.UNPROTECTED
    whole = found[owner].in_colo and found[peer].in_colo and companions is not None
    if companions is None or not whole:
        return Protection.MIGRATING  # any protection under way is undone
    one, two = companions[owner], companions[peer]
    equal = one.written and two.written and one.generation == two.generation == number
    states = (one.state, two.state)
    return Protection.COLO if equal and states == _IN_COLO else Protection.MIGRATING


#: The states in the disk records of a primary and its secondary once COLO was entered.
_IN_COLO = (Worth.IN_SYNC, Worth.FOLLOWING)


def _without_owner(
    name: str,
    living: Mapping[NodeName, KnownQemu],
    found: Mapping[NodeName, FoundQemu],
    number: int,
) -> Belief:
    """Return a belief without a guest; refuse where a secondary in COLO may be all that is left."""
    if waiting := [node for node in living if found[node].colo_mode is COLOMode.SECONDARY]:
        why = f"{_processes(living, waiting)} holds a checkpoint of a primary that is gone"
        raise _refused(name, living, why)
    return Belief(generation=number, launches=living)


def _processes(launches: Mapping[NodeName, KnownQemu], nodes: list[NodeName]) -> str:
    return " and ".join(f"process {launches[n].identity.pid} on node {n}" for n in nodes)


def _refused(name: str, living: Mapping[NodeName, KnownQemu], why: str) -> PreconditionFailed:
    return PreconditionFailed(
        f"The journal of pair {name} knows of nothing, and {why}: what runs is left as it is.",
        hint="bring the journal back to its place and start with --adopt; "
        f"`coloctl stop {name} --force` ends {_processes(living, sorted(living))}",
    )

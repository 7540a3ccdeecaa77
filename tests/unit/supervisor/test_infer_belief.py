"""What a pair is taken for where its journal knows of nothing: from processes, images and claim."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pytest

from coloctl.colo.generation import Companion, Worth
from coloctl.errors import PreconditionFailed
from coloctl.ha.arbiter import Claim
from coloctl.host.base import Identity
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.supervisor.lost_journal import infer_belief
from coloctl.supervisor.reconcile import ABSENT, Belief, FoundQemu, KnownQemu, Move, reconcile

pytestmark = pytest.mark.unit


def found(
    state: RunState | None, mode: COLOMode | None = COLOMode.NONE, held: bool = False
) -> FoundQemu:
    migration = MigrationStatus.COLO if mode is not COLOMode.NONE else MigrationStatus.NONE
    return FoundQemu(Role.PRIMARY, True, held, state, migration, mode)


KINDS: Mapping[str, FoundQemu] = {
    "absent": ABSENT,
    "held": found(RunState.PRELAUNCH, held=True),
    "waits": found(RunState.INMIGRATE),
    "runs": found(RunState.RUNNING),
    "stopped": found(RunState.IO_ERROR),
    "primary": found(RunState.RUNNING, COLOMode.PRIMARY),
    "in a checkpoint": found(RunState.FINISH_MIGRATE, COLOMode.PRIMARY),
    "secondary": found(RunState.RUNNING, COLOMode.SECONDARY),
    "silent": found(None, None),
}
#: Those that run the guest, or may.
GUESTS = ("runs", "stopped", "primary", "in a checkpoint")


def images(a: Worth, b: Worth, number: int = 3, ahead: int = 0) -> dict[NodeName, Companion]:
    return {
        "a": Companion("web", "a", number, a, written=True),
        "b": Companion("web", "b", number + ahead, b, written=True),
    }


WHOLE = images(Worth.IN_SYNC, Worth.FOLLOWING)


def judge(
    a: str, b: str, companions: Mapping[NodeName, Companion] | None = WHOLE, claim: int = 0
) -> tuple[Belief, Move]:
    seen: dict[NodeName, FoundQemu] = {"a": KINDS[a], "b": KINDS[b]}
    roles = {"a": Role.PRIMARY, "b": Role.SECONDARY}
    launches = {
        node: KnownQemu(roles[node], Identity(100 + i, 1))
        for i, node in enumerate(NODES)
        if seen[node].alive
    }
    claimed = Claim("web", "a", claim, "") if claim else None
    belief = infer_belief("web", launches, seen, companions, claimed)
    as_believed = {
        node: FoundQemu(belief.launches[node].role, one.alive, one.held, one.run_state,
                        one.migration, one.colo_mode) if node in belief.launches else one
        for node, one in seen.items()
    }  # fmt: skip
    return belief, reconcile(belief, as_believed).move


def everything() -> Iterator[tuple[str, str]]:
    return itertools.product(KINDS, KINDS)


def test_a_guest_that_may_run_is_never_ended() -> None:
    for a, b in everything():
        try:
            belief, move = judge(a, b)
        except PreconditionFailed:
            continue
        if {a, b} & {*GUESTS, "silent"}:
            assert move in (Move.ADOPT_COLO, Move.ADOPT_ALONE, Move.ROLL_BACK_PROTECT), (a, b)
            owner = next(n for n, one in belief.launches.items() if one.role is Role.PRIMARY)
            assert {"a": a, "b": b}[owner] in GUESTS


def test_what_cannot_be_told_is_refused_and_every_process_is_named() -> None:
    for a, b in everything():
        several = a in GUESTS and b in GUESTS
        orphan = "secondary" in (a, b) and not {a, b} & set(GUESTS)
        if several or orphan or "silent" in (a, b):
            with pytest.raises(PreconditionFailed, match="left as it is") as refused:
                judge(a, b)
            assert refused.value.hint is not None and "stop web --force" in refused.value.hint


def test_a_protected_pair_stays_one() -> None:
    belief, move = judge("primary", "secondary")
    assert (belief.protection, belief.generation, move) == (Protection.COLO, 3, Move.ADOPT_COLO)
    assert belief.protection_wanted


@pytest.mark.parametrize(
    "companions",
    [
        None,  # they cannot be read
        images(Worth.IN_SYNC, Worth.DIVERGED),
        images(Worth.IN_SYNC, Worth.RESYNC_TARGET),
        images(Worth.FOLLOWING, Worth.FOLLOWING),
        images(Worth.IN_SYNC, Worth.FOLLOWING, ahead=-1),
        {node: Companion("web", node) for node in NODES},  # nobody ever wrote them
    ],
)
def test_a_secondary_that_the_images_do_not_vouch_for_is_made_anew(
    companions: Mapping[NodeName, Companion] | None,
) -> None:
    """The journal would have said whether its disk missed a write of the guest."""
    belief, move = judge("primary", "secondary", companions)
    assert move is Move.ROLL_BACK_PROTECT
    assert belief.launches["a"].role is Role.PRIMARY


def test_a_claim_that_is_newer_than_the_images_counts() -> None:
    belief, move = judge("primary", "secondary", claim=4)
    assert (belief.generation, move) == (4, Move.ROLL_BACK_PROTECT)


def test_a_promoted_secondary_is_the_guest_whatever_its_command_line_says() -> None:
    belief, move = judge("absent", "runs")
    assert (belief.protection, move) == (Protection.UNPROTECTED, Move.ADOPT_ALONE)
    assert belief.launches["b"].role is Role.PRIMARY

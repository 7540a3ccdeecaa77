"""Choose the survivor of a failover by what really answers, never by belief.

Called by `supervisor.acts.failover`; asks the survivor through `ha.failover.require_answer`.

Invariant: a node is never fenced for a survivor that did not answer just now.
"""

from __future__ import annotations

from coloctl.errors import FailoverRefused
from coloctl.ha.failover import require_answer
from coloctl.model.pair import NodeName, Role, other
from coloctl.model.protection import Protection
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState


async def choose(state: PairState, to: NodeName | None, *, force: bool) -> tuple[Seat, Seat]:
    """Choose the survivor of a failover and the node to fence, in this order.

    The survivor is the node ``to`` where one was named, else the secondary, else the primary. It
    must have answered on its rescue monitor just now: a node is never fenced for a survivor that
    cannot run. Both have a QEMU, be it a dead one. With ``force`` a secondary whose disk missed a
    write, or whose guest has diverged, may survive; the operator accepts that loss. Raises
    `FailoverRefused` when no node qualifies.
    """
    _require_two_sides(state, force=force)
    if to is not None:
        await _require_answer(state, state.seats[to], force=force)
        return state.seats[to], state.seats[other(to)]
    refusals = []
    for role in (Role.SECONDARY, Role.PRIMARY):
        seat = state.seat_of(role)
        assert seat is not None
        try:
            await _require_answer(state, seat, force=force)
        except FailoverRefused as refused:
            refusals.append(refused.message)
        else:
            return seat, state.seats[other(seat.name)]
    raise FailoverRefused(
        " ".join(refusals), hint=f"`coloctl stop {state.spec.name} --force` ends what is left"
    )


def _require_two_sides(state: PairState, *, force: bool) -> None:
    name = state.spec.name
    if state.protection is Protection.FAILED and not force:
        raise FailoverRefused(
            f"Pair {name} has failed: an earlier failover did not succeed.",
            hint=f"`coloctl failover {name} --force` tries it again",
        )
    if state.protection not in (Protection.COLO, Protection.FAILOVER, Protection.FAILED):
        raise FailoverRefused(
            f"Pair {name} is {state.protection}: no secondary holds a complete "
            "checkpoint of this generation.",
            hint=f"`coloctl wait {name} --for colo` waits until one does",
        )
    for seat in state.seats.values():
        if seat.vm is None or seat.view.role is Role.NONE:
            raise FailoverRefused(
                f"Node {seat.name} has no part in pair {name} any more; nothing is left to choose.",
                hint=f"`coloctl stop {name}` ends the pair",
            )


async def _require_answer(state: PairState, seat: Seat, *, force: bool) -> None:
    assert seat.vm is not None
    try:
        if seat.missed_write and seat.view.role is Role.SECONDARY and not force:
            raise FailoverRefused(
                f"Node {seat.name} cannot survive: its disk missed a write of the guest."
            )
        if seat.diverged and seat.view.role is Role.SECONDARY and not force:
            raise FailoverRefused(f"Node {seat.name} cannot survive: its guest has diverged.")
        await require_answer(seat.vm)
    except FailoverRefused as refused:
        raise FailoverRefused(
            refused.message, hint=f"`coloctl failover {state.spec.name} --to {other(seat.name)}`"
        ) from refused

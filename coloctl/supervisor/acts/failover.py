"""Fail a pair over as its supervisor: choose, fence, claim, promote, and record the end.

Called by `supervisor.reactor` and `supervisor.adopt`, by `control.service` for the verb, and by
`supervisor.acts.switchover` and `supervisor.acts.unprotect`. `ha.failover` does the steps and keeps
their order, `supervisor.acts.failover_book` records and shows them; this module begins and ends the
act around both.

Invariant: a step goes to clients as soon as it is done, and the timeline reaches journal and
history before `FAILED_OVER` is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from coloctl.colo import generation
from coloctl.colo.generation import Worth
from coloctl.ha.arbiter import Arbiter, open_arbiter, require_claimable
from coloctl.ha.failover import Steps
from coloctl.model.pair import NodeName, Role
from coloctl.model.pairevent import FailedOver, StepReached
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.model.view import Presence
from coloctl.supervisor.acts import merge
from coloctl.supervisor.acts.cause import OPERATOR, outcome, reason
from coloctl.supervisor.acts.durable import require_place
from coloctl.supervisor.acts.failover_book import FailoverBook
from coloctl.supervisor.acts.stop import end
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.supervisor.survivor import choose

#: For the record about the lost node's disks, which may hang with it; seconds.
LEFT_BEHIND_S = 2.0
#: The questions of that, one after the other: the disks, their record, its two places.
_LEFT_TRIPS = 4


async def failover(
    state: PairState,
    to: NodeName | None,
    *,
    force: bool = False,
    steps: Steps | None = None,
    vouched: bool = False,
) -> Timeline:
    """Promote ``to`` to run the guest alone, else the secondary, or the primary if only it answers.

    ``force`` tries again after a failover that failed. ``steps`` began when the loss was noticed,
    and have the cause; without them an operator asks for it now. ``vouched``: an operator has
    confirmed that the other node is down.

    Raises `FailoverRefused` when that would lose writes that clients saw acknowledged or another
    supervisor decided otherwise, `FencingFailed` without a proof that the other node is down, and
    `PreconditionFailed` when the decision cannot be written: the pair stays in ``failover`` then.
    """
    steps = steps or Steps(state.clock, cause=OPERATOR)
    cause = steps.cause
    by_hand = force and cause == OPERATOR
    async with state.acting("failover", to=to, force=force, cause=cause):
        async with _sent(state, steps):
            arbiter, survivor, lost = await _choose(state, to, force=force, by_hand=by_hand)
            if state.protection is Protection.COLO:
                state.note(Fact.NODE_LOST, reason(survivor.name, lost.name, cause))
            book = FailoverBook(state, arbiter, survivor, lost, steps, force=by_hand)
            warning = await book.run(vouched=vouched)
            await end(state, lost.name, Presence.DEAD, unproven=book.unproven)
            survivor.view = replace(survivor.view, role=Role.PRIMARY)
            state.record_seat(survivor)
            cleared = state.protection is Protection.FAILED
            fact = Fact.OPERATOR_CLEARED if cleared else Fact.SURVIVOR_RUNS
            try:
                _send(state, steps)
                ended = outcome(survivor.name, lost.name, cause, lost.killed)
                state.note(fact, " ".join(filter(None, (ended, steps.why, warning))))
                merge.explain(state, survivor)
                await book.settle()
            finally:
                timeline = book.timeline()
                state.remember_failover(timeline)
        state.emit(FailedOver(timeline=timeline))
        await _mark_disks_of_lost(state, lost.name)
        return timeline


async def _choose(
    state: PairState, to: NodeName | None, *, force: bool, by_hand: bool
) -> tuple[Arbiter, Seat, Seat]:
    """Choose arbiter, survivor and lost node; raises before anything is done to either node."""
    arbiter = open_arbiter(state.spec, state.ground.folder)
    asking = asyncio.create_task(arbiter.current())
    try:
        survivor, lost = await choose(state, to, force=force)
        require_claimable(await asking, survivor.name, state.generation + 1)
        if not by_hand:
            await require_place(state, survivor)
    finally:
        asking.cancel()
    return arbiter, survivor, lost


async def _mark_disks_of_lost(state: PairState, lost: NodeName) -> None:
    """Record beside the lost node's disks that the guest went on without them.

    The survivor's higher generation shows the same, until its own record is lost.
    """
    before = state.generation - 1
    with contextlib.suppress(TimeoutError):
        hosts = state.ground.hosts
        async with asyncio.timeout(LEFT_BEHIND_S + hosts[lost].reach.trips_s(_LEFT_TRIPS)):
            await generation.keep(state.spec, hosts, lost, before, Worth.DIVERGED)


@contextlib.asynccontextmanager
async def _sent(state: PairState, steps: Steps) -> AsyncIterator[None]:
    """Send each step to clients as soon as it is done, until the block ends; then the rest."""

    async def relay() -> None:
        while True:
            await steps.more()
            _send(state, steps)

    relaying = asyncio.create_task(relay())
    try:
        yield
    finally:
        relaying.cancel()
        _send(state, steps)


def _send(state: PairState, steps: Steps) -> None:
    """Send the steps that clients do not have yet; `acts.merge` sends the end of a merge itself."""
    for one in steps.unread():
        if one.step is not FailoverStep.MERGED:
            state.emit(StepReached(act="failover", step=str(one.step), at_ms=one.at_ms))

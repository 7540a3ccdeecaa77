"""Exchange the roles of a protected pair as planned, then protect it again; nothing is lost.

Called by `control.service` through `supervisor.acts`. Asks `ha.arbiter` and `ha.failover` for every
reason to refuse, then fails over and protects as the acts beside it do.

Invariant: up to the fence of the old primary, the point of no return, any failure leaves the guest
where it was.
"""

from __future__ import annotations

import asyncio

from coloctl.colo import launch
from coloctl.colo.equal_builds import require_same_binary
from coloctl.errors import NotProtected, PreconditionFailed
from coloctl.ha.arbiter import open_arbiter, require_claimable
from coloctl.ha.failover import Steps, require_answer
from coloctl.machine import freshcode
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Protection
from coloctl.model.timeline import Timeline
from coloctl.supervisor.acts.cause import SWITCHOVER
from coloctl.supervisor.acts.failover import failover
from coloctl.supervisor.acts.protect import Entered, Watch, reprotect
from coloctl.supervisor.acts.tune import checkpoint_of
from coloctl.supervisor.state import PairState

#: Clients that the checkpoint held are served again before the old primary ends, so that the two
#: silences do not add up. Seconds.
BREATH_S = 0.05


async def switchover(
    state: PairState, watch: Watch, entered: Entered, *, force: bool = False
) -> Timeline:
    """Promote the secondary, then make a new one on the old primary's node.

    Every reason to refuse is asked for first, then one more checkpoint is taken. Up to there any
    failure leaves the guest where it was. The point of no return is the fence of the old primary,
    right after that checkpoint: writes acknowledged to clients by then are on both nodes.
    ``force`` accepts a secondary under TCG without the fresh-code plugin.

    Raises `NotProtected`, `PreconditionFailed` or what `failover` raises where roles did not
    change, and what protecting raises where they did and the guest runs unprotected.
    """
    async with state.acting("switchover"):
        # What is undecided about the secondary's guest is decided first: it will be the only one.
        state.progress("compare guests")
        await state.beside.settle()
        node = await _require_sound(state)
        if not force:
            _require_fresh_code(state)
        state.progress("checkpoint")
        await checkpoint_of(state)
        await asyncio.sleep(BREATH_S)
    # No act comes in between: neither call waits before its act has begun.
    timeline = await failover(state, node, steps=Steps(state.clock, cause=SWITCHOVER))
    await reprotect(state, watch, entered)
    return timeline


async def _require_sound(state: PairState) -> NodeName:
    """Require a whole pair in which each node can take the other's role; return the new primary.

    Raises `NotProtected`, `FailoverRefused` or `PreconditionFailed` with what is missing.
    """
    name = state.spec.name
    if state.protection is not Protection.COLO:
        raise NotProtected(
            f"Pair {name} is {state.protection}: only a protected pair can change its roles. "
            f"{state.reason}",
            hint=f"`coloctl wait {name} --for colo` waits until it is",
        )
    if state.finding.diagnosis is not Diagnosis.HEALTHY:
        raise PreconditionFailed(
            f"Pair {name} is not healthy: {state.finding.sentence()}",
            hint=f"`coloctl explain {name}` shows what is observed",
        )
    secondary = state.seat_of(Role.SECONDARY)
    assert secondary is not None and secondary.vm is not None
    if secondary.missed_write:
        raise PreconditionFailed(
            f"The disk of node {secondary.name} missed a write of the guest.",
            hint=f"`coloctl unprotect {name}`, then `coloctl reprotect {name}`",
        )
    if secondary.diverged:
        raise PreconditionFailed(
            f"The guest of node {secondary.name} has diverged from the primary's.",
            hint=f"`coloctl explain {name}` shows what it did; `coloctl unprotect {name}`, then "
            f"`coloctl reprotect {name}`, makes a fresh secondary",
        )
    await require_answer(secondary.vm)
    held = await open_arbiter(state.spec, state.ground.folder).current()
    require_claimable(held, secondary.name, state.generation + 1)
    await launch.require_same_sizes(state.spec, state.ground)
    await require_same_binary(state.ground)
    return secondary.name


def _require_fresh_code(state: PairState) -> None:
    """Raise `PreconditionFailed` where the secondary may be another guest than the primary's."""
    secondary = state.seat_of(Role.SECONDARY)
    if secondary is not None and secondary.view.fresh_code is False:
        name, binary = state.spec.name, state.ground.node(secondary.name).binary
        raise PreconditionFailed(
            f"Pair {name} runs under TCG without the fresh-code plugin: {freshcode.WITHOUT}.",
            hint=f"{freshcode.hint(binary.path)}, which `coloctl unprotect {name}` "
            f"and `coloctl reprotect {name}` make; --force switches over all the same",
        )

"""One side lives on: whatever asked for it, a person or a diagnosis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coloctl.colo import generation
from coloctl.errors import ColoctlError, FencingFailed
from coloctl.ha.failover import Timeline, fail_over
from coloctl.ha.fencing import require_means
from coloctl.model.event import Kind
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import Fencing, Presence
from coloctl.supervisor.acts.stop import end
from coloctl.supervisor.state import PairState
from coloctl.supervisor.survivor import choose


async def failover(state: PairState, to: NodeName | None, *, force: bool = False) -> Timeline:
    """``to``, or else the secondary, or the primary if only that answers, runs the guest alone.

    ``force`` tries again after a failover that failed: an operator takes it upon himself.
    Raises `FailoverRefused` when that would lose what clients saw acknowledged, `FencingFailed`
    without a proof that the other node is down.
    """
    async with state.acting("failover"):
        survivor, lost = await choose(state, to, force=force)
        role = survivor.view.role
        assert survivor.vm is not None and lost.vm is not None
        require_means(state.spec, lost.vm)
        if state.protection is Protection.COLO:
            state.note(Fact.NODE_LOST, f"A failover to node {survivor.name} was asked for.")
        lost.retired = True
        lost.view = replace(lost.view, fencing=Fencing.IN_PROGRESS)

        warning = ""

        async def promote() -> None:
            nonlocal warning
            lost.view = replace(lost.view, fencing=Fencing.FENCED, presence=Presence.DEAD)
            state.grow_generation()
            warning = await generation.keep(
                state.spec, state.ground.hosts, survivor.name, state.generation
            )
            if warning:
                state.record(Kind.NOTE, node=survivor.name, data={"generation-not-kept": warning})

        try:
            timeline = await fail_over(
                state.spec, survivor.vm, lost.vm, role,
                before_promotion=promote, note=_step_note(state), clock=state.clock,
            )  # fmt: skip
        except ColoctlError as error:
            if isinstance(error, FencingFailed):
                lost.retired = False
                lost.view = replace(lost.view, fencing=Fencing.FAILED)
            state.note(Fact.FAILOVER_FAILED, error.message)
            raise
        await end(state, lost.name, Presence.DEAD)
        survivor.view = replace(survivor.view, role=Role.PRIMARY)
        state.record(Kind.OUTCOME, step="timeline", data=timeline.to_json())
        cleared = state.protection is Protection.FAILED
        state.note(
            Fact.OPERATOR_CLEARED if cleared else Fact.SURVIVOR_RUNS,
            f"The guest runs on node {survivor.name} alone since node {lost.name} was lost. "
            f"{warning}".rstrip(),
        )
        state.emit("FAILED_OVER", {"timeline": timeline.to_json()})
        return timeline


def _step_note(state: PairState) -> Callable[[str, float], None]:
    return lambda step, at_ms: state.emit("STEP", {"act": "failover", "step": step, "at-ms": at_ms})

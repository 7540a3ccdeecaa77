"""The small knobs: one checkpoint now, another period from now on."""

from __future__ import annotations

from coloctl.colo.protect import checkpoint_now
from coloctl.errors import NotProtected
from coloctl.model.event import Kind
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.model.view import PairView
from coloctl.supervisor.acts.life import unless_it_dies
from coloctl.supervisor.state import PairState

#: A checkpoint that was asked for, seconds.
CHECKPOINT_DEADLINE_S = 30.0


async def checkpoint(state: PairState) -> PairView:
    """One checkpoint that began after the call is complete."""
    async with state.acting("checkpoint"):
        _require_colo(state)
        await _checkpoint_now(state)
    return state.view()


async def _checkpoint_now(state: PairState) -> None:
    primary, secondary = state.vm_of(Role.PRIMARY), state.vm_of(Role.SECONDARY)
    # A failover must not wait for a checkpoint that can no longer complete.
    await unless_it_dies(
        state, secondary, checkpoint_now(primary, state.period_ms(), CHECKPOINT_DEADLINE_S)
    )


async def set_checkpoint_delay(state: PairState, delay_ms: int) -> None:
    """The period is ``delay_ms`` from now on, or from the guest's first connection on.

    Also for the next protection.
    """
    async with state.acting("set"):
        before, state.delay_ms = state.delay_ms, delay_ms
        try:
            if state.protection is Protection.COLO:
                await _checkpoint_now(state)
        except BaseException:
            state.delay_ms = before
            raise
        state.record(Kind.NOTE, data={"checkpoint-delay": delay_ms})


def _require_colo(state: PairState) -> None:
    if state.protection is not Protection.COLO:
        raise NotProtected(
            f"Pair {state.spec.name} is {state.protection}, not in COLO.",
            hint=f"`coloctl status {state.spec.name}` says why",
        )

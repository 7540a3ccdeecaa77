"""Take one checkpoint now, or change settings of a pair that runs.

Called by `control.service`, and by `supervisor.acts.switchover` and `supervisor.verifying` for a
checkpoint. Sends the plans of `colo.retune` to the primary; `colo.protect` waits for a checkpoint.

Invariant: settings hold as a whole or not at all, and those that hold are in the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coloctl.clock import Deadline
from coloctl.colo import retune
from coloctl.colo.plan import Plan
from coloctl.colo.protect import checkpoint_now
from coloctl.errors import NotProtected
from coloctl.model.event import Kind
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.model.tuning import SETTINGS, Tuning
from coloctl.model.view import PairView
from coloctl.qmp.sequence import run
from coloctl.supervisor.acts.life import unless_it_dies
from coloctl.supervisor.state import PairState

#: A checkpoint that was asked for, seconds.
CHECKPOINT_DEADLINE_S = 30.0
#: QEMU's own answers to what is set, seconds.
LIMITS_DEADLINE_S = 10.0

#: What a copy under way takes at once, so that the act which copies need not be over.
_BESIDE = frozenset({"mirror-rate"})


async def checkpoint(state: PairState) -> PairView:
    """Wait until a checkpoint that began after the call is complete."""
    async with state.acting("checkpoint"):
        _require_colo(state)
        await checkpoint_of(state)
    return state.view()


async def checkpoint_of(state: PairState) -> None:
    """Wait until a checkpoint that began after the call is complete; inside an act."""
    primary, secondary = state.vm_of(Role.PRIMARY), state.vm_of(Role.SECONDARY)
    # A failover must not wait for a checkpoint that can no longer complete.
    await unless_it_dies(
        state, secondary, checkpoint_now(primary, state.period_ms(), CHECKPOINT_DEADLINE_S)
    )


async def set_values(state: PairState, settings: Mapping[str, object]) -> Tuning:
    """Set ``settings``, by name, from now on and for the next protection; return all before.

    A longer delay waits for the guest's first connection. Raises `UsageError` for a setting that
    cannot be changed, else what setting it raises; no setting is kept then.
    """
    after = state.tuning.changed(settings, state.spec.name)
    if _BESIDE.issuperset(settings):
        return await _set_rate(state, after.mirror_rate)
    async with state.acting("set"):
        before = state.tuning
        state.tune(state.tuning.changed(settings, state.spec.name))
        try:
            if state.protection is Protection.COLO and state.tuning.period != before.period:
                await checkpoint_of(state)
            # After the steps that may fail: QEMU takes these at once, in any state of its guest.
            if state.tuning.comparison != before.comparison:
                await _send_to_primary(state, retune.limit_comparison(state.spec))
        except BaseException:
            state.tune(before, state.pace.delay_ms)
            raise
        _remember(state, settings)
    return before


async def _set_rate(state: PairState, rate: int) -> Tuning:
    """Set the rate of copies of disks, of the one under way and of those to come."""
    before = state.tuning
    state.tune(replace(before, mirror_rate=rate))
    try:
        await _send_to_primary(state, retune.limit_mirrors(state.spec, rate))
    except BaseException:
        state.tune(replace(state.tuning, mirror_rate=before.mirror_rate))
        raise
    _remember(state, {"mirror-rate": rate})
    return before


async def _send_to_primary(state: PairState, steps: Plan) -> None:
    """Run ``steps`` on the primary's QEMU; where none runs, its command line will have them."""
    seat = state.seat_of(Role.PRIMARY)
    if seat is not None and seat.vm is not None:
        await run(steps, seat.vm.monitor, deadline=Deadline(LIMITS_DEADLINE_S))


def _remember(state: PairState, settings: Mapping[str, object]) -> None:
    """Journal the settings, so that they outlive the supervisor."""
    data = {name: state.tuning[name] for name in SETTINGS if name in settings}
    state.record(Kind.OUTCOME, act="set", data=data)


def _require_colo(state: PairState) -> None:
    if state.protection is not Protection.COLO:
        raise NotProtected(
            f"Pair {state.spec.name} is {state.protection}, not in COLO.",
            hint=f"`coloctl status {state.spec.name}` says why",
        )

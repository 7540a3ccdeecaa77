"""Take one checkpoint now, or change settings of a pair that runs.

Called by `control.service`, and by `supervisor.acts.switchover` and `supervisor.verifying` for a
checkpoint. Sends the plans of `colo.retune` to the primary; `colo.protect` waits for a checkpoint.

Invariant: settings hold as a whole or not at all, and those that hold are in the journal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from coloctl.clock import Deadline
from coloctl.colo import retune
from coloctl.colo.plan import Plan
from coloctl.colo.protect import CHECKPOINT_DEADLINE_S, checkpoint_now
from coloctl.errors import NotProtected
from coloctl.machine.netfilter import comparison_limits
from coloctl.model import tuning
from coloctl.model.answers import Change
from coloctl.model.event import Kind
from coloctl.model.pair import PairSpec, Role
from coloctl.model.protection import Protection
from coloctl.model.view import PairView
from coloctl.qmp.sequence import run
from coloctl.supervisor.acts.life import unless_it_dies
from coloctl.supervisor.state import PairState

#: QEMU's own answers to what is set, seconds: one to a new delay may come after a whole checkpoint.
SET_DEADLINE_S = 10.0

#: What a copy under way takes at once, so that the act which copies need not be over.
_BESIDE = frozenset({"mirror-rate"})


async def checkpoint(state: PairState) -> PairView:
    """Wait until a checkpoint that began after the call is complete.

    Raises `NotProtected` outside COLO.
    """
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


async def set_values(state: PairState, settings: Mapping[str, object]) -> tuple[Change, ...]:
    """Set ``settings``, by name, from now on and for the next protection; return the changes.

    A longer delay waits for the guest's first connection. Raises `UsageError` for a setting that
    cannot be changed, else what setting it raises; no setting is kept then.
    """
    before = state.spec
    after = tuning.changed(before, settings)
    if _BESIDE.issuperset(settings):
        await _set_rate(state, after)
        _remember(state, after, settings)
    else:
        async with state.acting("set"):
            await _set(state, after, settings)
            _remember(state, after, settings)
    return tuple(
        Change(name, tuning.value(before, name), tuning.value(after, name)) for name in settings
    )


async def _set(state: PairState, after: PairSpec, names: Collection[str]) -> None:
    """Let the settings of these names hold as ``after`` has them, in QEMU as well."""
    before = state.spec
    state.tune(after)
    try:
        if state.protection is Protection.COLO and tuning.period(after) != tuning.period(before):
            await checkpoint_of(state)
        # After the steps that may fail: QEMU takes these at once, in any state of its guest.
        if comparison_limits(after) != comparison_limits(before):
            await _send_to_primary(state, retune.limit_comparison(after))
    except BaseException:
        state.tune(_undone(state, before, names), state.pace.delay_ms)
        raise


async def _set_rate(state: PairState, after: PairSpec) -> None:
    """Set the rate of copies of disks, of the one under way and of those to come."""
    before = state.spec
    state.tune(after)
    try:
        await _send_to_primary(state, retune.limit_mirrors(after, after.policy.mirror_rate))
    except BaseException:
        state.tune(_undone(state, before, _BESIDE))
        raise


def _undone(state: PairState, before: PairSpec, names: Collection[str]) -> PairSpec:
    """Return the pair as it is, with these settings as before: others may be set meanwhile."""
    return tuning.with_settings(state.spec, {name: tuning.value(before, name) for name in names})


async def _send_to_primary(state: PairState, steps: Plan) -> None:
    """Run ``steps`` on the primary's QEMU; where none runs, its command line will have them."""
    seat = state.seat_of(Role.PRIMARY)
    if seat is not None and seat.vm is not None:
        await run(steps, seat.vm.monitor, deadline=Deadline(SET_DEADLINE_S))


def _remember(state: PairState, after: PairSpec, names: Collection[str]) -> None:
    """Journal the settings of these names, so that they outlive the supervisor."""
    data = {name: value for name, value in tuning.by_name(after).items() if name in names}
    state.record(Kind.OUTCOME, act="set", data=data)


def _require_colo(state: PairState) -> None:
    if state.protection is not Protection.COLO:
        raise NotProtected(
            f"Pair {state.spec.name} is {state.protection}, not in COLO.",
            hint=f"`coloctl status {state.spec.name}` says why",
        )

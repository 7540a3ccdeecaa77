"""End the protection of a pair because an operator wants its guest to run alone.

Called by `control.service` through `supervisor.acts`; a pair in COLO is failed over to its primary,
with the steps of `ha.failover`.
"""

from __future__ import annotations

from coloctl.errors import PairBusy
from coloctl.ha.failover import Steps
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.model.view import PairView
from coloctl.supervisor.acts.cause import UNPROTECTED
from coloctl.supervisor.acts.failover import failover
from coloctl.supervisor.state import PairState

#: A protection that is given up has undone itself within this, seconds: it may have to wait for a
#: QEMU that is busy.
UNDO_WAIT_S = 60.0


async def unprotect(state: PairState) -> PairView:
    """Release the guest to run alone where it runs; it is not protected again by itself.

    A secondary that is being made is given up; a guest that runs alone is left as it is. Raises
    `PairBusy` while another act is under way, else what `failover` raises.
    """
    if state.act not in ("", "protect"):
        raise PairBusy(
            f"Pair {state.spec.name} is busy with '{state.act}'.",
            hint=f"`coloctl status {state.spec.name}` shows how far it is",
        )
    state.want_protection(False)
    if state.act:
        state.give_up("An operator has ended the protection.")
        await state.idle(UNDO_WAIT_S)
    if state.protection is Protection.COLO:
        node, steps = state.vm_of(Role.PRIMARY).node, Steps(state.clock, cause=UNPROTECTED)
        await failover(state, node, steps=steps)
    return state.view()

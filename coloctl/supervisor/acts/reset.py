"""Reset a guest whose kernel has panicked.

Called by `supervisor.reactor` through `supervisor.acts` where ``policy.on_panic`` is ``restart``;
orders it on the primary's command monitor (`qmp.command`).
"""

from __future__ import annotations

import contextlib

from coloctl.errors import DeadlineMissed
from coloctl.model.event import Kind
from coloctl.model.pair import Role
from coloctl.qmp import command as qmp
from coloctl.supervisor.state import PairState

#: A guest whose kernel resets the machine when it panics does so within milliseconds. Seconds.
OWN_RESET_WAIT_S = 1.0
#: QEMU resets a machine between two instructions, or after a checkpoint. Seconds.
RESET_DEADLINE_S = 30.0


async def reset_guest(state: PairState, why: str) -> None:
    """Wait for the guest to reset itself, else reset it by QEMU.

    In COLO its secondary follows with a checkpoint. Raises `DeadlineMissed` when QEMU does not
    report the reset.
    """
    primary = state.vm_of(Role.PRIMARY)
    with primary.monitor.listen("RESET", bound=1) as resets:
        with contextlib.suppress(DeadlineMissed):
            await resets.next(OWN_RESET_WAIT_S)
            return
        state.record(Kind.NOTE, node=primary.node, data={"reset": why})
        await primary.execute(qmp.system_reset())
        await resets.next(RESET_DEADLINE_S)

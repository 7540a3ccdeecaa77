"""End work that needs a secondary when that secondary dies or is given up.

Called by `supervisor.acts.protect` and `supervisor.acts.tune` for work that would otherwise wait
for a dead QEMU (`vm`) until its deadline.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from coloctl.errors import ReplicationError
from coloctl.supervisor.state import PairState
from coloctl.tasks import first_of
from coloctl.vm import VM


async def unless_it_dies(state: PairState, secondary: VM, work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``; raises `ReplicationError` as soon as the secondary's process ends.

    The same error is raised when the supervisor gives that node up (`PairState.give_up`), with its
    reason.
    """
    ends = (work, secondary.process.wait(), state.given_up())
    async with first_of(*ends) as (working, dying, losing):
        if working.done():
            await working
        elif dying.done():
            last = (await secondary.last_words(1)).strip() or "none"
            raise ReplicationError(
                f"The secondary on node {secondary.node} died: {dying.result()}.",
                stage="protect",
                hint=f"its last output: {last}",
            )
        else:
            hint = f"`coloctl explain {state.spec.name}` shows what is observed"
            raise ReplicationError(losing.result(), stage="protect", hint=hint)

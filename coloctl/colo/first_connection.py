"""Take a checkpoint at once when a guest opens the first TCP connection of its life.

Called by `supervisor.loop` for a pair in COLO; watches the taps of its `vm` and orders with
`colo.protect`. A Linux guest draws the secrets of its TCP sequence numbers and timestamps at its
first TCP connection. If that happens after COLO began, the two guests hold different secrets until
the next checkpoint. A takeover in that window breaks connections (docs/qemu.md).

Invariant: whether the guest drew them before cannot be seen from outside, so every pair is treated
as if it had not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from coloctl.colo import taps
from coloctl.colo.protect import CHECKPOINT_DEADLINE_S, checkpoint_now
from coloctl.errors import ColoctlError
from coloctl.model.pair import PairSpec
from coloctl.tasks import first_of
from coloctl.vm import VM


async def guard(spec: PairSpec, primary: VM, delay_ms: Callable[[], int]) -> None:
    """Make the guest's TCP secrets equal on both sides, then set the period to ``delay_ms()``.

    Returns after the checkpoint that follows the first connection seen on any of the pair's taps. A
    pair whose taps cannot be watched stays at the cautious period of `colo.protect`: the call waits
    until it is cancelled. A pair without taps needs no connection. Raises as `checkpoint_now`.
    """
    names = taps.names(spec, primary.node)
    if not names:
        await checkpoint_now(primary, delay_ms(), CHECKPOINT_DEADLINE_S)
        return
    await _first_of(primary, names)
    await checkpoint_now(primary, delay_ms(), CHECKPOINT_DEADLINE_S)


async def _first_of(primary: VM, names: list[str]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        try:
            watches = [
                await stack.enter_async_context(primary.host.first_connection(tap)) for tap in names
            ]
        except ColoctlError:
            await asyncio.Event().wait()
        async with first_of(*(watch.wait() for watch in watches)):
            return

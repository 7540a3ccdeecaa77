"""The first TCP connection of a guest's life is followed by a checkpoint at once.

A Linux guest draws the secrets behind its TCP sequence numbers and timestamps at its first TCP
connection. Drawn after COLO began, the two guests hold different secrets until the next
checkpoint; a takeover in that window breaks connections (docs/qemu.md). Whether the guest drew them
before cannot be seen from outside, so every pair is treated as if it had not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from coloctl.colo.protect import checkpoint_now
from coloctl.errors import ColoctlError
from coloctl.model.pair import PairSpec
from coloctl.tasks import first_of
from coloctl.vm import VM

#: How long the one checkpoint may take before the guard gives up; the pair then stays cautious.
CHECKPOINT_DEADLINE_S = 30.0


async def guard(spec: PairSpec, primary: VM, delay_ms: Callable[[], int]) -> None:
    """The guest's TCP secrets are the same on both sides, and the period is ``delay_ms()``.

    Returns after the checkpoint that follows the first connection seen on any of the pair's taps.
    A pair whose taps cannot be watched stays at the cautious period of `colo.protect`.
    """
    taps = [nic.tap.ifname[primary.node] for nic in spec.nics if nic.tap is not None]
    if not taps:
        await checkpoint_now(primary, delay_ms(), CHECKPOINT_DEADLINE_S)
        return
    await _first_of(primary, taps)
    await checkpoint_now(primary, delay_ms(), CHECKPOINT_DEADLINE_S)


async def _first_of(primary: VM, taps: list[str]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        try:
            watches = [
                await stack.enter_async_context(primary.host.first_connection(tap)) for tap in taps
            ]
        except ColoctlError:
            await asyncio.Event().wait()
        async with first_of(*(watch.wait() for watch in watches)):
            return

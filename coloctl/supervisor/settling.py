"""End the time of grace after a guest's reset as soon as the guest has booted.

Called by `supervisor.loop` when the primary's guest was reset. While a guest boots it dirties its
memory, so limits are raised and protection may have to wait; `ha.heartbeat.RESET_MS` bounds that. A
sign that it has booted ends it: its ``ready_line`` (`vm`), else the answer of its agent
(`qmp.guestagent`), else the first frame that it sends.

Invariant: the signs of an earlier boot never count; the console is read from the reset on, and the
agent and the taps are observed from the reset on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from coloctl.colo import taps
from coloctl.errors import ColoctlError
from coloctl.machine.cmdline import agent_socket
from coloctl.qmp import guestagent
from coloctl.supervisor.acts.protect import BOOT_DEADLINE_S
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.tasks import first_of
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: One conversation with an agent that may not run yet, seconds, and the pause before the next.
AGENT_WAIT_S, AGENT_PAUSE_S = 5.0, 1.0


class Settling:
    """Waits for the end of a boot; ``settled`` is called at that moment, once per reset."""

    def __init__(
        self,
        state: PairState,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        settled: Callable[[], None],
    ) -> None:
        self._state, self._spawn, self._settled = state, spawn, settled
        self._task: asyncio.Task[None] | None = None

    def begin(self, seat: Seat) -> None:
        """Wait from now on for the guest of ``seat`` to have booted; an earlier wait ends."""
        self.end()
        if seat.vm is not None:
            self._task = self._spawn(self._until_booted(seat.vm))

    def end(self) -> None:
        """Cancel the wait."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _until_booted(self, vm: VM) -> None:
        spec = self._state.spec
        try:
            if spec.guest.ready_line:
                await vm.until_booted(spec.guest.ready_line, BOOT_DEADLINE_S)
            else:
                await self._spoke(vm)
        except ColoctlError as error:
            log.info("The end of the guest's boot will not be seen: %s", error.message)
            return
        if spec.guest.ready_line:
            self._state.booted()
        self._settled()

    async def _spoke(self, vm: VM) -> None:
        """Wait for the first sign of life from inside the guest, where one can be observed."""
        signs = [_sent(vm, tap) for tap in self._taps(vm)]
        if self._state.spec.guest.agent:
            signs.append(_agent_answers(vm))
        if not signs:
            await asyncio.Event().wait()
        async with first_of(*signs) as waits:
            for sign in waits:
                if sign.done():
                    sign.result()

    def _taps(self, vm: VM) -> list[str]:
        return taps.names(self._state.spec, vm.node)


async def _sent(vm: VM, tap: str) -> None:
    """Wait for the first frame that the guest sends over ``tap``."""
    async with vm.host.first_packet(tap) as packet:
        await packet.wait()


async def _agent_answers(vm: VM) -> None:
    """Wait until the agent in the guest has answered a question that was asked after the reset."""
    while True:
        with contextlib.suppress(ColoctlError):
            sock = await vm.host.monitor(agent_socket(vm.rundir), AGENT_WAIT_S)
            await guestagent.answers(sock, AGENT_WAIT_S)
            return
        await asyncio.sleep(AGENT_PAUSE_S)

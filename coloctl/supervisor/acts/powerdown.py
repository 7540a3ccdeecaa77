"""Ask the guest to shut down while it stays protected, and wait until it is off.

Called by `supervisor.acts.stop`; asks the guest's agent through `qmp.guestagent`, then presses the
power button. The secondary's guest never receives the power button (docs/qemu.md), so it takes no
part. It is there until the primary's guest is off; `supervisor.acts.stop` ends it afterwards, and
at a cut-off before the primary.

Invariant: the pair is never left without a secondary that it could still need. A secondary that is
lost meanwhile is given up, so that the primary's guest runs on alone; a primary that is lost is
left to the supervisor, which fails over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from enum import StrEnum

from coloctl.clock import Deadline
from coloctl.errors import ColoctlError, MonitorError, OutcomeUnknown
from coloctl.ha.decision import Action, Decision, decide
from coloctl.machine.cmdline import agent_socket
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Protection
from coloctl.qmp import command as qmp
from coloctl.qmp import guestagent
from coloctl.qmp.monitor import EventStream
from coloctl.supervisor.state import PairState
from coloctl.tasks import first_of
from coloctl.vm import VM, ended

log = logging.getLogger(__name__)

#: An agent that runs answers within milliseconds; a guest that is busy may not let it. Seconds.
AGENT_DEADLINE_S = 5.0
#: From one look at the pair to the next, seconds.
LOOK_S = 0.1
#: A primary whose guest is off may wait for its secondary in a checkpoint; seconds.
TOGETHER_WAIT_S = 1.0
#: QEMU writes back what its disks' caches hold before it ends, seconds.
WRITE_BACK_WAIT_S = 10.0
#: A QEMU's last output is read within milliseconds of its end, seconds.
LAST_EVENT_WAIT_S = 0.05
#: How often clients receive how much longer the guest may take, seconds.
REPORT_PERIOD_S = 10.0


class Ending(StrEnum):
    """End of the wait for the guest; the values are what `stop` answers."""

    OFF = "guest shut down"  #: it is off, or its QEMU ended with no secondary to take over
    CUT_OFF = "cut off: the guest did not power off in time"  #: it still runs
    LOST = "lost"  #: the primary is lost, and a living secondary runs the guest too


#: Releases the guest from its secondary, so that it runs on alone, shutting down as ordered.
LetGo = Callable[[], Awaitable[None]]


async def power_down(state: PairState, deadline: Deadline, let_go: LetGo) -> Ending:
    """Ask the guest of the primary to power itself off, and wait for it until ``deadline``.

    Its agent is asked first where the pair has one; the button is pressed when the agent fails, or
    when half of the time has passed. ``let_go`` is called when the secondary is lost meanwhile; its
    `ColoctlError` is not raised. Raises `MonitorError` where the button cannot be pressed.
    """
    primary = state.vm_of(Role.PRIMARY)
    with primary.monitor.listen("SHUTDOWN", bound=4) as events:
        off = _Off(state, primary, events, let_go)
        if state.spec.guest.agent and await _ask_agent(state, primary, deadline.remaining() / 4):
            half = Deadline(deadline.remaining() / 2)
            if (ending := await off.wait(half)) is not Ending.CUT_OFF:
                return ending
        await _press(primary)
        return await off.wait(deadline)


class _Off:
    """The wait for one guest."""

    def __init__(self, state: PairState, primary: VM, events: EventStream, let_go: LetGo) -> None:
        self.state, self.primary, self.events, self.let_go = state, primary, events, let_go

    async def wait(self, deadline: Deadline) -> Ending:
        """Wait for the guest's end until ``deadline``."""
        tell = Deadline(0.0)
        while not deadline.expired:
            if tell.expired:
                tell = Deadline(REPORT_PERIOD_S)
                self.state.progress("guest", limit_s=deadline.remaining())
            if await self._powered_off(min(LOOK_S, deadline.remaining())):
                self.state.seats[self.primary.node].retired = True
                await self._gone()
                return Ending.OFF
            if not self.primary.process.alive():
                return Ending.LOST if self._held_twice() else Ending.OFF
            decision = self._decision()
            if decision.action is Action.FAIL_OVER and decision.lost == self.primary.node:
                return Ending.LOST
            if decision.action is Action.FAIL_OVER:
                log.warning("%s It is released while the guest shuts down.", decision.reason)
                with contextlib.suppress(ColoctlError):
                    await self.let_go()
        return Ending.CUT_OFF

    async def _powered_off(self, within_s: float) -> bool:
        """Wait until the guest powers itself off, or its QEMU ends; return whether it did the
        first.

        False also when neither came in time.
        """
        event = self.events.next(3600.0, lambda event: bool(event.data.get("guest")))
        death = self.primary.process.wait()
        async with first_of(event, death, within_s=within_s) as (heard, dying):
            if dying.done() and not heard.done():
                await asyncio.wait({heard}, timeout=LAST_EVENT_WAIT_S)
            return heard.done() and heard.exception() is None

    async def _gone(self) -> None:
        """Wait until the primary's QEMU has ended; after 1 s kill a secondary for which it waits.

        Gives up after 10 s more. Raises `FencingFailed` for a secondary that does not die.
        """
        if not await ended(self.primary.process, TOGETHER_WAIT_S):
            secondary = self.state.seat_of(Role.SECONDARY)
            if secondary is not None and secondary.vm is not None:
                secondary.retired = True
                await secondary.vm.process.kill(WRITE_BACK_WAIT_S)
            await ended(self.primary.process, WRITE_BACK_WAIT_S)

    def _held_twice(self) -> bool:
        """Return whether a living secondary runs the guest too: the pair is in COLO."""
        secondary = self.state.seat_of(Role.SECONDARY)
        living = secondary is not None and secondary.vm is not None
        in_colo = self.state.protection is Protection.COLO
        return living and in_colo and secondary is not None and _lives(secondary.vm)

    def _decision(self) -> Decision:
        """Decide what would be done about the pair now, were it not being stopped."""
        state = self.state
        if state.observation is None or not self._held_twice():
            return Decision(Action.NONE)
        return decide(
            state.finding, state.observation, state.spec.policy, paused=False, pair=state.spec.name
        )


def _lives(vm: VM | None) -> bool:
    return vm is not None and vm.process.alive()


async def taken_over(state: PairState, lost: NodeName, wait_s: float) -> bool:
    """Wait until the supervisor has failed over from ``lost``; return whether it has."""

    async def over() -> bool:
        return state.protection is not Protection.COLO and not state.act

    if not await Deadline(wait_s).poll(over, LOOK_S):
        return False
    primary = state.seat_of(Role.PRIMARY)
    return primary is not None and primary.name != lost


async def _press(primary: VM) -> None:
    """Press the guest's power button; raises `MonitorError` where that cannot be done.

    Not where the press was sent and its answer is missing, nor where QEMU has just ended: the wait
    that follows finds out what became of the guest.
    """
    try:
        await primary.execute(qmp.system_powerdown())
    except OutcomeUnknown as error:
        log.warning("%s", error.message)
    except MonitorError:
        if primary.process.alive():
            raise


async def _ask_agent(state: PairState, primary: VM, wait_s: float) -> bool:
    """Ask the agent in the guest to shut it down; return whether the agent has accepted.

    A failure is logged: the caller presses the power button instead.
    """
    state.progress("agent")
    try:
        path = agent_socket(primary.rundir)
        sock = await primary.host.monitor(path, AGENT_DEADLINE_S)
        await guestagent.shut_down(sock, min(AGENT_DEADLINE_S, wait_s))
    except ColoctlError as error:
        log.warning("%s The guest's power button is pressed instead.", error.message)
        return False
    return True

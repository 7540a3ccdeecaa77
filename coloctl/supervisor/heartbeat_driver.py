"""Drive the heartbeat: attend the QEMUs that are in the pair's seats, and the link between them.

Called by `supervisor.loop`, which passes on QEMU's events and receives each observation, and by
`supervisor.held`; calls `ha.heartbeat` to beat and `ha.notices` to read events.

Invariant: a beat attends exactly the QEMUs that are in a seat and whose end is not wanted. It does
not beat while there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from coloctl.colo.launch import boots_alone
from coloctl.errors import ColoctlError
from coloctl.ha.heartbeat import Heartbeat
from coloctl.ha.link import Timed
from coloctl.ha.notices import notice_of
from coloctl.ha.probes import Context
from coloctl.model.observation import Notice, Observation
from coloctl.model.pair import NODES, NodeName, Role, other
from coloctl.model.protection import Protection
from coloctl.qmp.session import Event
from coloctl.supervisor.state import PairState
from coloctl.tasks import first_of
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: A link that could not be watched is tried again so often, seconds.
LINK_RETRY_S = 5.0


class HeartbeatDriver:
    """Holds the heartbeat of one pair; ``heard`` is called with every observation."""

    def __init__(
        self, state: PairState, heard: Callable[[Observation], None], timed: Timed
    ) -> None:
        self._state, self._heard = state, heard
        self._heartbeat = Heartbeat(state.spec, state.clock, timed=timed)
        self._attended: dict[NodeName, tuple[VM, Role]] = {}
        self._seated, self._left = asyncio.Event(), asyncio.Event()
        self._link: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start beating, because a QEMU was placed in a seat.

        The next beat attends it. Has no effect while the heartbeat beats already.
        """
        self._left.clear()
        self._seated.set()

    async def run(self) -> None:
        """Run the heartbeat while any seat has a QEMU, until cancelled.

        Start again after an error.
        """
        while True:
            await self._seated.wait()
            beats = self._heartbeat.run(self._context, self._hear)
            try:
                async with first_of(beats, self._left.wait()) as (beating, _):
                    pass
            finally:
                await self._unwatch()
                self._attended.clear()
            if not beating.cancelled() and beating.exception() is not None:
                error = beating.exception()
                log.error("The heartbeat failed and is started again", exc_info=error)
                await asyncio.sleep(1)

    def renew(self, node: NodeName) -> None:
        """Observe ``node`` by its new monitors, and the link by new ends; the old ones are lost."""
        if self._attended.pop(node, None) is not None:
            self._heartbeat.leave(node)
        if self._link is not None:
            self._link.cancel()
            self._link = None
            self._heartbeat.unwatch()

    def settled(self) -> None:
        """Note that a guest that was reset has booted."""
        self._heartbeat.settled()

    def look(self) -> Observation:
        """Return the observation of this moment, without waiting for the next beat."""
        return self._heartbeat.observation(self._context())

    def hear(self, node: NodeName, event: Event) -> None:
        """Note what ``event`` shows about its node; the next observation has it."""
        notice = notice_of(event.name, event.data)
        if notice is not None:
            self._attend()
            self._heartbeat.notice(node, notice)

    def note(self, node: NodeName, notice: Notice) -> None:
        """Note that ``notice`` holds of ``node``, although no event of QEMU showed it."""
        self._attend()
        self._heartbeat.notice(node, notice)

    def forget(self, node: NodeName, notice: Notice) -> None:
        """Forget ``notice`` of ``node``, because it does not hold any more."""
        if node in self._attended:
            self._heartbeat.forget(node, notice)

    def _hear(self, seen: Observation) -> None:
        self._heard(seen)
        if not self._attended:
            self._seated.clear()
            self._left.set()

    def _context(self) -> Context:
        self._attend()
        state = self._state
        primary = state.seat_of(Role.PRIMARY)
        in_colo = state.protection is Protection.COLO and primary is not None and primary.in_colo
        stats = primary.stats if in_colo and primary is not None else None
        alone = boots_alone(state.spec, state.ground)
        secondary = state.seat_of(Role.SECONDARY)
        contrast = state.beside.of(secondary.vm if secondary else None)
        return Context(
            state.protection, stats, state.period_ms(), alone, contrast,
            unfenced=state.unfenced, vouched=state.vouched,
        )  # fmt: skip

    def _attend(self) -> None:
        """Observe from now on each QEMU that is in a seat and is wanted, in its present role."""
        for node in NODES:
            seat = self._state.seats[node]
            if seat.vm is None or seat.retired:
                if self._attended.pop(node, None) is not None:
                    self._heartbeat.leave(node)
            elif self._attended.get(node) != (seat.vm, seat.view.role):
                self._attended[node] = (seat.vm, seat.view.role)
                self._heartbeat.attend(node, seat.vm, seat.view.role)
                self._begin_session(node)
        both = len(self._attended) == len(NODES)
        if both and not self._heartbeat.watches_link and self._link is None:
            self._link = asyncio.create_task(self._watch_link())
        elif not both and self._link is not None:
            self._link.cancel()
            self._link = None
            self._heartbeat.unwatch()

    def _begin_session(self, node: NodeName) -> None:
        """Forget what the peer reported of an earlier secondary.

        It does not count against ``node``.
        """
        peer = other(node)
        if peer not in self._attended:
            return
        self._heartbeat.attend(peer, *self._attended[peer])
        for one in NODES:
            if self._state.seats[one].missed_write:
                self._heartbeat.notice(other(one), Notice.REPLICA_WRITE_ERROR)

    async def _watch_link(self) -> None:
        """Watch the replication link, retrying.

        Without it the rest of the pair is watched all the same.
        """
        warned = False
        while True:
            try:
                await self._heartbeat.watch(self._state.ground.hosts)
            except ColoctlError as error:
                if not warned:
                    log.warning("The replication link is not watched: %s", error.message)
                warned = True
                await asyncio.sleep(LINK_RETRY_S)
            else:
                return

    async def _unwatch(self) -> None:
        if self._link is not None:
            self._link.cancel()
            await asyncio.wait({self._link})
            self._link = None
        with contextlib.suppress(ColoctlError):
            self._heartbeat.unwatch()

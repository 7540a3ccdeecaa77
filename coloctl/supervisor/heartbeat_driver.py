"""Whom the heartbeat attends: the QEMUs that sit in the pair's seats, and the link between them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from coloctl.colo.launch import boots_alone
from coloctl.errors import ColoctlError
from coloctl.ha.heartbeat import Context, Heartbeat
from coloctl.ha.link import Timed
from coloctl.ha.notices import notice_of
from coloctl.model.observation import Observation
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
    """Holds the heartbeat of one pair; ``heard`` is told every observation."""

    def __init__(
        self, state: PairState, heard: Callable[[Observation], None], timed: Timed
    ) -> None:
        self._state, self._heard = state, heard
        self._heart = Heartbeat(state.spec, state.clock, timed=timed)
        self._sitting: dict[NodeName, tuple[VM, Role]] = {}
        self._seated, self._left = asyncio.Event(), asyncio.Event()
        self._link: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Somebody sits there who was not attended before."""
        self._left.clear()
        self._seated.set()

    async def run(self) -> None:
        """The heart beats while anybody sits there, until cancelled."""
        while True:
            await self._seated.wait()
            beats = self._heart.run(self._context, self._hear)
            try:
                async with first_of(beats, self._left.wait()) as (beating, _):
                    pass
            finally:
                await self._unwatch()
                self._sitting.clear()
            if not beating.cancelled() and beating.exception() is not None:
                log.error("The heart stopped and is started again", exc_info=beating.exception())
                await asyncio.sleep(1)

    def settled(self) -> None:
        """Take note that a guest that was reset has booted."""
        self._heart.settled()

    def look(self) -> Observation:
        """What is known at this moment, without waiting for the next beat."""
        return self._heart.observation(self._context())

    def hear(self, node: NodeName, event: Event) -> None:
        """What the event says about its node is known from the next beat on."""
        notice = notice_of(event.name, event.data)
        if notice is not None:
            self._attend()
            self._heart.notice(node, notice)

    def note(self, node: NodeName, notice: str) -> None:
        """``notice`` holds of ``node``, although no event said so, or none was heard."""
        self._attend()
        self._heart.notice(node, notice)

    def forget(self, node: NodeName, notice: str) -> None:
        """``notice`` holds of ``node`` no more."""
        if node in self._sitting:
            self._heart.forget(node, notice)

    def _hear(self, seen: Observation) -> None:
        self._heard(seen)
        if not self._sitting:
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
        """Whoever sits there and is wanted is attended, in the role that he has now."""
        for node in NODES:
            seat = self._state.seats[node]
            if seat.vm is None or seat.retired:
                if self._sitting.pop(node, None) is not None:
                    self._heart.leave(node)
            elif self._sitting.get(node) != (seat.vm, seat.view.role):
                self._sitting[node] = (seat.vm, seat.view.role)
                self._heart.attend(node, seat.vm, seat.view.role)
                self._begin_session(node)
        both = len(self._sitting) == len(NODES)
        if both and not self._heart.watches_link and self._link is None:
            self._link = asyncio.create_task(self._watch_link())
        elif not both and self._link is not None:
            self._link.cancel()
            self._link = None
            self._heart.unwatch()

    def _begin_session(self, node: NodeName) -> None:
        """What the peer said of an earlier secondary does not count against ``node``."""
        peer = other(node)
        if peer not in self._sitting:
            return
        self._heart.attend(peer, *self._sitting[peer])
        for one in NODES:
            if self._state.seats[one].missed_write:
                self._heart.notice(other(one), "replica-write-error")

    async def _watch_link(self) -> None:
        """The replication link is watched; without that the pair is watched all the same."""
        told = False
        while True:
            try:
                await self._heart.watch(self._state.ground.hosts)
            except ColoctlError as error:
                if not told:
                    log.warning("The replication link is not watched: %s", error.message)
                told = True
                await asyncio.sleep(LINK_RETRY_S)
            else:
                return

    async def _unwatch(self) -> None:
        if self._link is not None:
            self._link.cancel()
            await asyncio.wait({self._link})
            self._link = None
        with contextlib.suppress(ColoctlError):
            self._heart.unwatch()

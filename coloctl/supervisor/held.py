"""Let a guest run on that QEMU has stopped because a write found no space.

QEMU's own policy for disks (`werror=enospc`) stops the guest in run state `io-error` instead of
failing the write, which waits: nothing is lost, and `cont` tries it again. Called by
`supervisor.loop` at events and once a second; waits as `supervisor.auto_reprotect` does.
It also knows which failed writes no child of a quorum (`machine.blockdev`) has: they were never
acknowledged, so no disk missed them.

Invariant: a replica counts as whole again only if every write that it failed is known to have
failed everywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from coloctl.errors import ColoctlError
from coloctl.machine import blockdev
from coloctl.model.event import Kind
from coloctl.model.observation import Notice
from coloctl.model.pair import Role, other
from coloctl.model.protection import Protection
from coloctl.model.qapi import RunState
from coloctl.model.view import Merge
from coloctl.qmp import command as qmp
from coloctl.qmp.session import Event
from coloctl.supervisor.auto_reprotect import wait_s
from coloctl.supervisor.heartbeat_driver import HeartbeatDriver
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: Less is no space: the guest would stop at once again. Bytes.
ROOM: Final = 1 << 20
#: A guest that ran for so long after it was let go is not held any more, seconds.
OVER_S: Final = 10.0
#: One question about a filesystem, seconds.
DEADLINE_S: Final = 5.0

#: Child, number of the disk, first sector, how many.
_Write = tuple[str, str, int, int]


class Held:
    """The hold of one pair's guest for want of space; `tick` is called about once a second."""

    def __init__(
        self,
        state: PairState,
        driver: HeartbeatDriver,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.state = state
        self._driver, self._spawn = driver, spawn
        self._vm: VM | None = None  #: whose writes and stops these are
        self._bad: set[_Write] = set()  #: writes that a child failed and perhaps another has
        self._lasting: set[str] = set()  #: children that missed something before these
        self._since_s: float | None = None  #: when the guest stopped
        self._tries, self._not_before_s = 0, 0.0
        self._task: asyncio.Task[None] | None = None

    def hear(self, primary: Seat, event: Event) -> None:
        """Take an event of the primary's QEMU, before a replica is marked for it."""
        if primary.vm is not self._vm:
            self._vm, self._bad, self._lasting = primary.vm, set(), set()
        data = event.data
        if event.name == "QUORUM_REPORT_BAD" and data.get("type") != "read":
            child = str(data.get("node-name"))
            before = (
                blockdev.is_replica(child) and self.state.seats[other(primary.name)].missed_write
            )
            if before and not any(one[0] == child for one in self._bad):
                self._lasting.add(child)
            self._bad.add((child, *_where(child, data)))
        elif event.name == "QUORUM_FAILURE":
            self._failed_everywhere(primary, _where(str(data.get("reference")), data))

    def _failed_everywhere(self, primary: Seat, where: tuple[str, int, int]) -> None:
        """Clear a write that no child has: the guest never got an acknowledgement of it."""
        children = {one[0] for one in self._bad if one[1:] == where}
        self._bad = {one for one in self._bad if one[1:] != where}
        left = {one[0] for one in self._bad} | self._lasting
        for child in children - left:
            if not blockdev.is_replica(child):
                self._driver.forget(primary.name, Notice.LOCAL_WRITE_ERROR)
                continue
            replica = self.state.seats[other(primary.name)]
            self._driver.forget(primary.name, Notice.REPLICA_WRITE_ERROR)
            replica.missed_write = False
            note = {"missed-nothing": "a write that no disk has was never acknowledged"}
            self.state.record(Kind.NOTE, node=replica.name, data=note)

    def tick(self) -> None:
        """Show that the guest is held, and let it go when there is space."""
        state, primary = self.state, self.state.seat_of(Role.PRIMARY)
        if primary is None or primary.vm is None:
            self._since_s = None
            return
        now = state.clock.now()
        if primary.view.run_state is not RunState.IO_ERROR:
            self._over(primary, now)
            return
        if self._since_s is None:
            self._since_s = now
        self._driver.note(primary.name, Notice.GUEST_HELD)
        if state.protection is not Protection.UNPROTECTED or state.act:
            return
        self._explain(
            primary,
            f"The guest on node {primary.name} is stopped: QEMU found no room for a write. Nothing "
            "is lost, the write waits, and the guest runs on by itself when there is room.",
        )
        if now >= self._not_before_s and (self._task is None or self._task.done()):
            self._task = self._spawn(self._let_go(primary, primary.vm))

    def end(self) -> None:
        """Cancel the attempt under way."""
        if self._task is not None:
            self._task.cancel()

    def _over(self, primary: Seat, now: float) -> None:
        if self._since_s is not None and primary.view.run_state is RunState.RUNNING:
            for name in (Notice.GUEST_HELD, Notice.LOCAL_WRITE_ERROR):
                self._driver.forget(primary.name, name)
            if self.state.protection is Protection.UNPROTECTED:
                self._explain(
                    primary,
                    f"The guest runs on node {primary.name}, alone. It was stopped for "
                    f"{now - self._since_s:.0f} s, until there was room for what it wrote.",
                )
            self._since_s = None
        if now > self._not_before_s + OVER_S:
            self._tries = 0

    def _explain(self, primary: Seat, reason: str) -> None:
        """Set the reason of the state.

        A reason about an unfinished image stays, it matters more.
        """
        if primary.merge is Merge.NONE:
            self.state.explain(reason)

    async def _let_go(self, primary: Seat, vm: VM) -> None:
        """Resume the guest, which tries its write again, if there is space where its disks lie."""
        state = self.state
        try:
            if not await self._room(primary, vm):
                return
            self._tries += 1
            self._not_before_s = state.clock.now() + wait_s(self._tries)
            state.record(Kind.NOTE, node=primary.name, data={"cont": "there is room again"})
            await vm.execute(qmp.cont(), DEADLINE_S)
        except ColoctlError as error:
            self._not_before_s = state.clock.now() + wait_s(self._tries + 1)
            log.warning("The guest on node %s stays stopped: %s", primary.name, error.message)

    async def _room(self, primary: Seat, vm: VM) -> bool:
        """Return whether every filesystem that the guest's QEMU writes disks to has some space.

        True also where that cannot be determined: an attempt that finds none costs nothing.
        """
        folders = [disk.image[primary.name] for disk in self.state.spec.disks]
        argv = ["stat", "-f", "-L", "-c", "%a %S", str(vm.rundir)]
        argv += [str(path) for path in folders if not path.is_relative_to("/dev")]
        done = await vm.host.run(argv, deadline_s=DEADLINE_S)
        rooms = [line.split() for line in done.stdout.splitlines()]
        return done.code != 0 or all(int(free) * int(size) >= ROOM for free, size in rooms)


def _where(name: str, data: Any) -> tuple[str, int, int]:
    """Return the disk's number, which ends the names of all its nodes, and the place on it."""
    number = name[len(name.rstrip("0123456789")) :]
    return number, int(data.get("sector-num", -1)), int(data.get("sectors-count", -1))

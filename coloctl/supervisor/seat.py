"""Hold one node of a pair: its QEMU, its checkpoint statistics, what was last observed of it.

Made by `supervisor.state`; called by `supervisor.loop` (`watch`, `count`, `observe`) and by the
acts (`take`, `clear`), such as `supervisor.acts.protect`; listens to events of `qmp.session` and
counts them in `colo.checkpoint`.

Invariant: events and a death are reported only of the QEMU that is in the seat now. A QEMU that
does not answer is impaired, not dead; only the kernel says that it is dead.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from coloctl.colo.checkpoint import CheckpointStats
from coloctl.errors import MonitorError
from coloctl.host.base import Death
from coloctl.machine import freshcode
from coloctl.model.pair import NodeName, Role
from coloctl.model.qapi import MigrationStatus
from coloctl.model.view import Degradation, Merge, NodeView, Presence
from coloctl.qmp.session import Event
from coloctl.vm import VM

#: Events of one QEMU that may wait for the supervisor; checkpoints make four a second at most.
EVENT_BOUND = 1000

#: A dead QEMU's monitor ends at once; what it sent before has been read by then. Seconds.
LAST_EVENTS_WAIT_S = 0.05
#: The same where a signal ended it, whose monitor ends when the kernel closes its files. Seconds.
HALTED_WAIT_S = 0.0005

OnEvent = Callable[["Seat", Event], None]
OnDeath = Callable[["Seat", Death], Awaitable[None]]


@dataclass
class Seat:
    """The supervisor's record of one node; only the supervisor writes here."""

    view: NodeView
    vm: VM | None = None
    stats: CheckpointStats = field(default_factory=CheckpointStats)
    in_colo: bool = False  #: its STOP and RESUME events are those of checkpoints
    missed_write: bool = False  #: its replica's disk does not hold a write of the guest
    diverged: bool = False  #: its guest is another one than the primary's
    reported_s: float = -math.inf  #: when it last reported that a disk of its quorum failed
    retired: bool = False  #: its end is wanted, so its death is no news
    killed: str = ""  #: the end of its last QEMU, where the kernel killed that for its memory
    merged_bytes: tuple[int, int] = (0, 0)  #: of a merge that is under way, and of how many
    _watch: asyncio.Task[None] | None = None
    _merging: asyncio.Task[None] | None = None

    @property
    def name(self) -> NodeName:
        return self.view.name

    @property
    def merge(self) -> Merge:
        """The progress of the merge of its overlays into its image."""
        return self.view.merge

    @merge.setter
    def merge(self, merge: Merge) -> None:
        self.view = replace(self.view, merge=merge)

    @property
    def following(self) -> bool:
        """True while a task follows its merge."""
        return self._merging is not None and not self._merging.done()

    def follow(self, merging: asyncio.Task[None] | None) -> None:
        """Replace the task that follows the merge by ``merging`` or none; cancel the old one."""
        if self._merging is not None:
            self._merging.cancel()
        self._merging, self.merged_bytes = merging, (0, 0)

    def take(self, vm: VM, role: Role, version: str, user: str = "", unit: str = "") -> None:
        """Place ``vm``, which ``user`` runs, on this node; forget counts and marks of another.

        ``unit`` is a sentence on the unit of systemd that it did not get.
        """
        self.follow(None)
        self.vm, self.killed = vm, ""
        self.retired = self.missed_write = self.diverged = False
        self.reported_s = -math.inf
        self.stats, self.in_colo = CheckpointStats(), False
        self.view = NodeView(
            name=self.view.name,
            host=self.view.host,
            role=role,
            presence=Presence.ALIVE,
            pid=vm.process.identity.pid,
            qemu_version=version,
            user=user,
            unit=unit,
            fresh_code=freshcode.in_force(vm.process.argv),
        )

    def clear(self, presence: Presence) -> None:
        """Clear the seat, because no QEMU runs on this node; ``presence`` says why.

        Ends no process: the caller has.
        """
        self.follow(None)
        self.vm = None
        self.retired = True
        self.view = NodeView(
            name=self.view.name,
            host=self.view.host,
            presence=presence,
            fencing=self.view.fencing,
        )

    def watch(self, tasks: asyncio.TaskGroup, on_event: OnEvent, on_death: OnDeath) -> None:
        """Report events and the end of this seat's QEMU from here on."""
        assert self.vm is not None
        self._watch = tasks.create_task(self._run(self.vm, on_event, on_death))

    def unwatch(self) -> None:
        """Report nothing of this seat any more."""
        self.follow(None)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _run(self, vm: VM, on_event: OnEvent, on_death: OnDeath) -> None:
        pump = asyncio.create_task(self._pump(vm, on_event))
        try:
            death = await vm.process.until_halted()
            # Why it ended may be among its last events, which are all there already.
            halted = vm.process.alive()  # then its monitor ends later
            await asyncio.wait({pump}, timeout=HALTED_WAIT_S if halted else LAST_EVENTS_WAIT_S)
        finally:
            pump.cancel()
        if self.vm is vm:
            await on_death(self, death)

    async def _pump(self, vm: VM, on_event: OnEvent) -> None:
        with vm.monitor.listen(bound=EVENT_BOUND) as events:
            while True:
                try:
                    event = await events.next(math.inf)
                except MonitorError:
                    return
                on_event(self, event)

    def count(self, event: Event) -> float | None:
        """Count ``event`` in the statistics.

        Return the pause in seconds when it ended a checkpoint.
        """
        status = MigrationStatus(event.data.get("status", "none"))
        if event.name == "MIGRATION":
            self.in_colo = status is MigrationStatus.COLO
            if self.in_colo:
                self.stats = CheckpointStats()
        elif not self.in_colo:
            return None
        elif event.name == "STOP":
            self.stats.stop(event.at_s)
        elif event.name == "RESUME":
            return self.stats.resume(event.at_s)
        return None

    async def observe(self, deadline_s: float) -> None:
        """Ask QEMU for its state and show it; one that does not answer is impaired, not dead.

        Raises no `MonitorError`. Does nothing without a QEMU.
        """
        vm = self.vm
        if vm is None:
            return
        try:
            vitals = await vm.observe(deadline_s + vm.host.reach.trips_s(1))
        except MonitorError:
            if self.vm is vm:
                self._impaired(Degradation.MONITOR)
            return
        if self.vm is vm:
            self.view = replace(
                self.view,
                run_state=vitals.run_state,
                migration=vitals.migration,
                colo_mode=vitals.colo_mode,
            )
            self._impaired()

    def miss_write(self) -> None:
        """Mark this replica's disk as incomplete; it never becomes whole by itself."""
        self.missed_write = True
        self._impaired()

    def diverge(self) -> None:
        """Mark this secondary's guest as another one than the primary's, for its whole life."""
        self.diverged = True
        self._impaired()

    def _impaired(self, *by: Degradation) -> None:
        lasting = {Degradation.REPLICA_DISK: self.missed_write, Degradation.GUEST: self.diverged}
        kept = (one for one, holds in lasting.items() if holds)
        self.view = replace(self.view, impairments=(*kept, *by))

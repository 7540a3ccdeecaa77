"""Run one pair's supervisor: receive events, observe both QEMUs, pass both to the deciders.

`control.daemon.serve` creates the `Supervisor` and runs it until the pair ends; `control.service`
passes it to the acts, which call its `watch` and `entered`. An event of QEMU (`qmp.session`) is
counted by its `supervisor.seat` and sent to clients. An observation of
`supervisor.heartbeat_driver` goes to `supervisor.reactor`, the only module that acts without being
asked.

Invariant: events only wake the supervisor. A decision rests on what was asked afterwards, so a lost
or late event costs time and never correctness. An error in one event or observation is logged and
does not end the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from coloctl import bounded
from coloctl.colo import first_connection, generation
from coloctl.colo.generation import Worth
from coloctl.errors import ColoctlError, HostOutOfReach
from coloctl.host.base import Death
from coloctl.host.blocking import aside
from coloctl.machine import blockdev
from coloctl.model import event as records
from coloctl.model.event import Kind
from coloctl.model.observation import Observation
from coloctl.model.pair import NODES, NodeName, Role, other
from coloctl.model.pairevent import CheckpointPhase, NodeDead, NodeEvent
from coloctl.model.protection import Protection
from coloctl.model.view import Presence
from coloctl.qmp.session import Event
from coloctl.supervisor import acts, certificates, given_up
from coloctl.supervisor.auto_reprotect import AutoReprotect
from coloctl.supervisor.contrast import Contrasting
from coloctl.supervisor.heartbeat_driver import HeartbeatDriver
from coloctl.supervisor.held import Held
from coloctl.supervisor.machines import MachineWatch
from coloctl.supervisor.pacing import Pacing
from coloctl.supervisor.reactor import Reactor
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.settling import Settling
from coloctl.supervisor.state import PairState
from coloctl.supervisor.taps import TapWatch
from coloctl.supervisor.verifying import Verifying
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How often belief is compared with observation when nothing happens, seconds.
OBSERVE_PERIOD_S = 1.0
#: How often the processors of both guests are sampled between two such comparisons.
SAMPLES = 4
#: One observation of one QEMU, seconds: longer than any checkpoint pause seen (docs/qemu.md).
OBSERVE_DEADLINE_S = 2.0
#: The list of what was given up is read so often while it names something, seconds.
FORGET_PERIOD_S = 2.0

#: For the last line of a dead QEMU's log, which the journal gets with its end. Seconds.
LAST_LINE_WAIT_S = 0.05


class Supervisor:
    """Watches one pair. `run` holds the loop; `watch` and `entered` are given to the acts."""

    def __init__(self, state: PairState) -> None:
        self.state = state
        self._tasks: asyncio.TaskGroup | None = None
        self._guard: asyncio.Task[None] | None = None
        #: For the metrics: each answered probe of the heartbeat, and each observation.
        self.timed: Callable[[str, str, float], None] = lambda _node, _path, _seconds: None
        self.heard: Callable[[Observation], None] = lambda _seen: None
        self._driver = HeartbeatDriver(state, self._on_beat, self._on_answer)
        self._reactor = Reactor(state, self._driver.look, self._spawn)
        self._auto_reprotect = AutoReprotect(state, self.watch, self.entered, self._spawn)
        self._pacing = Pacing(state, self._spawn)
        self._held = Held(state, self._driver, self._spawn)
        self._settling = Settling(state, self._spawn, self._driver.settled)
        self._contrast = Contrasting(state, self._spawn)
        self._taps = TapWatch(state)
        self._machines = MachineWatch(
            state,
            self.watch,
            renew=self._driver.renew,
            missed=self.missed,
            back=self._auto_reprotect.soon,
        )
        state.beside.settle = self._contrast.settle
        self.verifying = Verifying(state, self._spawn)
        state.beside.tidy = self.verifying.tidy

    async def run(self, until: asyncio.Event) -> None:
        """Watch the pair until ``until`` is set; QEMU runs on if this is cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            beating = self._tasks.create_task(self._driver.run())
            comparing = self._tasks.create_task(self._compare_guests())
            tidying = self._tasks.create_task(self._bound_logs())
            tending = self._tasks.create_task(self._tend())
            asking = self._tasks.create_task(acts.keep_asking(self.state))
            attending = self._tasks.create_task(self._machines.run())
            reading = self._tasks.create_task(certificates.keep_reading(self.state))
            forgetting = self._tasks.create_task(self._forget())
            while not until.is_set():
                await asyncio.gather(
                    *(seat.observe(OBSERVE_DEADLINE_S) for seat in self.state.seats.values())
                )
                self.state.pending_records.settle()
                self._held.tick()
                self._auto_reprotect.tick()
                self.verifying.tick()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OBSERVE_PERIOD_S):
                        await until.wait()
            for seat in self.state.seats.values():
                seat.unwatch()
            self._drop_guard()
            beating.cancel()
            tidying.cancel()
            asking.cancel()
            attending.cancel()
            reading.cancel()
            forgetting.cancel()
            comparing.cancel()
            self._contrast.end()
            tending.cancel()
            self._settling.end()
            self.verifying.end()
            self._reactor.end()
            self._auto_reprotect.end()
            self._held.end()

    async def _forget(self) -> None:
        """Name what was given up no longer than it is listed: an operator may have it forgotten."""
        while True:
            await asyncio.sleep(FORGET_PERIOD_S)
            if self.state.gone_for_good:
                self.state.gone_for_good = await aside(
                    partial(given_up.sentence, self.state.spec.name)
                )

    async def _tend(self) -> None:
        """Keep the guest on its LAN.

        An error in one look at the taps is logged, and the next look comes.
        """
        while True:
            await asyncio.sleep(OBSERVE_PERIOD_S)
            try:
                await self._taps.look()
            except HostOutOfReach:  # shown by `supervisor.machines`
                continue
            except ColoctlError as error:
                log.error("The taps could not be looked at: %s", error.message)
            except Exception:
                log.exception("The taps could not be looked at")

    async def _bound_logs(self) -> None:
        """Keep the files of QEMU, of the guest's console and of the log within their bounds."""
        logs = bounded.pair_logs(self.state.ground.folder)
        while True:
            await asyncio.to_thread(bounded.bound_all, logs)
            await asyncio.sleep(bounded.PERIOD_S)

    async def _compare_guests(self) -> None:
        """Compare both guests about once a second, and sample their processors more often.

        An error in one comparison is logged, and the next one comes.
        """
        while True:
            try:
                await self._contrast.tick()
                for _ in range(SAMPLES):
                    await asyncio.sleep(OBSERVE_PERIOD_S / SAMPLES)
                    self._contrast.sample()
            except HostOutOfReach:  # shown by `supervisor.machines`
                await asyncio.sleep(OBSERVE_PERIOD_S)
            except ColoctlError as error:
                log.error("The guests could not be compared: %s", error.message)
                await asyncio.sleep(OBSERVE_PERIOD_S)
            except Exception:
                log.exception("The guests could not be compared")
                await asyncio.sleep(OBSERVE_PERIOD_S)

    def watch(self, seat: Seat) -> None:
        """Watch the QEMU that was placed in ``seat`` from here on."""
        assert self._tasks is not None
        self._reactor.deaths.pop(seat.name, None)
        self._driver.begin()
        seat.watch(self._tasks, self._on_event, self._on_death)

    def missed(self, seat: Seat, name: str, **data: Any) -> None:
        """Handle now an event that the QEMU of ``seat`` sent while no supervisor listened."""
        now = self.state.clock.now()
        self._on_event(seat, Event(name, data, now, now))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(work)

    def _on_answer(self, node: str, path: str, seconds: float) -> None:
        self.timed(node, path, seconds)

    def _on_beat(self, seen: Observation) -> None:
        """Pass an observation to the reactor.

        An error in one does not keep the next ones from it.
        """
        if self.state.protection is not Protection.COLO:
            self._drop_guard()
        try:
            self._reactor.hear(seen)
            self.heard(seen)
        except Exception:
            log.exception("An observation could not be handled")

    def entered(self, primary: VM) -> None:
        """Note in the images that COLO was entered, and guard the guest's first connection.

        Both nodes' disks hold everything now. Where the spec asks for it, checkpoints come more
        often until one has followed the first connection of the guest's life.
        """
        assert self._tasks is not None
        self._drop_guard()
        for node in NODES:
            worth = Worth.IN_SYNC if node == primary.node else Worth.FOLLOWING
            self._tasks.create_task(self._keep_worth(node, self.state.generation, worth))
        self._pacing.begin()
        self.state.cautious = self.state.spec.checkpoint.guard_first_connection
        if self.state.cautious:
            self._guard = self._tasks.create_task(self._guard_connections(primary))

    def _drop_guard(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        self.state.cautious = False

    async def _keep_worth(self, node: NodeName, number: int, worth: Worth) -> None:
        """Record beside a node's image that COLO was entered in generation ``number``.

        Journals a note where that cannot be written.

        One node's slow disk does not hold up the other's record. A failover that is over before a
        disk took its record has a higher generation, and what was recorded in it stays.
        """
        spec, hosts = self.state.spec, self.state.ground.hosts
        if warning := await generation.keep(spec, hosts, node, number, worth):
            self.state.record(Kind.NOTE, node=node, data={records.GENERATION_NOT_KEPT: warning})

    async def _guard_connections(self, primary: VM) -> None:
        state = self.state
        try:
            await first_connection.guard(state.spec, primary, lambda: state.delay_ms)
        except ColoctlError as error:
            state.record(Kind.NOTE, data={records.FIRST_CONNECTION: error.message})
        else:
            state.cautious = False
            state.record(Kind.NOTE, data={records.FIRST_CONNECTION: records.COVERED})

    def _on_event(self, seat: Seat, event: Event) -> None:
        """Handle one event.

        An error in it is logged and does not keep the next ones from being handled.
        """
        try:
            self._hear(seat, event)
        except ColoctlError as error:
            log.error(
                "The event %s of node %s could not be handled: %s",
                event.name, seat.name, error.message,
            )  # fmt: skip
        except Exception:
            log.exception("The event %s of node %s could not be handled", event.name, seat.name)

    def _hear(self, seat: Seat, event: Event) -> None:
        pause = seat.count(event)
        self._driver.hear(seat.name, event)
        self._contrast.hear(seat, event)
        emit = self.state.emit
        emit(NodeEvent(node=seat.name, event=event.name, data=event.data, timestamp=event.at_s))
        if seat.view.role is not Role.PRIMARY:
            return
        self._held.hear(seat, event)
        if event.name == "RESET":
            self.state.boots()
            self._settling.begin(seat)
        elif event.name == "QUORUM_REPORT_BAD":
            self._on_bad_child(seat, event)
        elif not seat.in_colo:
            return
        elif event.name == "STOP":
            emit(CheckpointPhase(node=seat.name, phase="begin", count=seat.stats.count))
            self._pacing.stopped(seat)
        elif pause is not None:
            pause_ms, count = round(pause * 1000, 1), seat.stats.count
            emit(CheckpointPhase(node=seat.name, phase="end", count=count, pause_ms=pause_ms))
            self._pacing.resumed(seat, pause)

    def _on_bad_child(self, primary: Seat, event: Event) -> None:
        """Mark the replica as incomplete if the disk that failed missed a write of the guest.

        QEMU goes on with the local disk alone, and its checkpoints would make the loss complete:
        from here on this replica is never promoted.
        """
        primary.reported_s = self.state.clock.now()
        replica = self.state.seats[other(primary.name)]
        child, operation = str(event.data["node-name"]), str(event.data["type"])
        if not blockdev.is_replica(child) or operation == "read" or replica.missed_write:
            return
        replica.miss_write()
        missed = {records.MISSED: operation, "by": child}
        self.state.record(Kind.OBSERVATION, node=replica.name, data=missed)

    async def _on_death(self, seat: Seat, death: Death) -> None:
        """Show and journal that the QEMU of ``seat`` is dead.

        Let the reactor handle it at once.
        """
        self._reactor.deaths[seat.name] = death
        seat.killed = "" if death.memory_limit is None else str(death)
        if seat.retired:
            return
        seat.view = replace(
            seat.view, presence=Presence.DEAD, run_state=None, migration=None, colo_mode=None
        )
        self.state.emit(NodeDead(node=seat.name, how=str(death)))
        vm, how = seat.vm, str(death)
        self._on_beat(self._driver.look())  # what follows begins while the log is read
        if vm is not None:
            words = await vm.last_words(1, wait_s=LAST_LINE_WAIT_S)
            self.state.record_end(seat.name, vm.process.identity, how, dead=how, log=words.strip())

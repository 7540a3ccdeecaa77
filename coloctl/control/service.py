"""A supervisor as a process: one pair, its loop, and its control socket."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Mapping
from typing import Any

from coloctl import __version__, paths
from coloctl.colo import launch
from coloctl.control.server import ControlServer, Handler
from coloctl.errors import ColoctlError, NotProtected, UsageError
from coloctl.journal import Journal
from coloctl.model.pair import PairSpec, Role
from coloctl.qmp.command import Command
from coloctl.supervisor import acts, leftovers
from coloctl.supervisor.dialogue import dialogue
from coloctl.supervisor.leftovers import JOURNAL
from coloctl.supervisor.loop import OBSERVE_DEADLINE_S, Supervisor
from coloctl.supervisor.state import Emit, PairState

Arguments = Mapping[str, Any]

log = logging.getLogger(__name__)

#: A command sent by hand to one QEMU, seconds.
QMP_DEADLINE_S = 30.0

#: Checkpoint periods that the pair file takes as well, milliseconds; QEMU's own default is
#: 20,000 (qapi/migration.json).
DELAY_RANGE_MS = (1, 600_000)


class Service:
    """Answers the commands of the control schema for one pair."""

    def __init__(self, state: PairState, supervisor: Supervisor) -> None:
        self.state = state
        self.supervisor = supervisor
        self.ended = asyncio.Event()
        self.failure: ColoctlError | None = None  #: what ended the supervisor against its will
        self.interrupts = 0
        self._hurry = asyncio.Event()

    def interrupt(self) -> None:
        """The pair is to end; asked again, at once."""
        self.interrupts += 1
        (self._hurry if self.ended.is_set() else self.ended).set()

    async def end(self) -> None:
        """Nothing of the pair runs any more; where it could not be ended, `failure` says why."""
        asked = asyncio.create_task(acts.stop(self.state, force=False))
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({asked, hurried}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if not asked.done():
                await acts.stop(self.state, force=True)
            else:
                await asked
        except ColoctlError as error:
            log.error("The pair could not be ended: %s", error.message)
            self.failure = self.failure or error
        finally:
            hurried.cancel()

    async def begin(self, *, protect: bool) -> None:
        """The pair was started, or the supervisor ends with `failure`."""
        try:
            await self._start({"protect": protect})
        except ColoctlError as error:
            self.failure = error
            self.ended.set()

    def handlers(self) -> dict[str, Handler]:
        """By the names of `control.schema`."""
        return {
            "query-pair": self._query_pair,
            "query-plan": self._query_plan,
            "pair-start": self._start,
            "pair-failover": self._failover,
            "pair-stop": self._stop,
            "pair-set": self._set,
            "pair-checkpoint": self._checkpoint,
            "node-qmp": self._qmp,
        }

    async def _query_pair(self, arguments: Arguments) -> Any:
        return self.state.view().to_json()

    async def _query_plan(self, arguments: Arguments) -> Any:
        state = self.state
        primary = state.seat_of(Role.PRIMARY)
        return dialogue(
            state.spec,
            state.ground,
            arguments["verb"],
            state.protection,
            arguments.get("to"),
            primary=primary.name if primary else "a",
            delay_ms=arguments.get("value", state.delay_ms),
        )

    async def _start(self, arguments: Arguments) -> Any:
        await acts.start(
            self.state,
            self.supervisor.watch,
            self.supervisor.entered,
            protected=arguments.get("protect", True),
        )
        return await self._seen()

    async def _seen(self) -> Any:
        """The pair as it is right now, not as the last tick of the loop saw it."""
        seats = self.state.seats.values()
        await asyncio.gather(*(seat.observe(OBSERVE_DEADLINE_S) for seat in seats))
        return self.state.view().to_json()

    async def _failover(self, arguments: Arguments) -> Any:
        timeline = await acts.failover(
            self.state, arguments.get("to"), force=arguments.get("force", False)
        )
        await self._seen()
        return timeline.to_json()

    async def _stop(self, arguments: Arguments) -> Any:
        how = await acts.stop(
            self.state,
            force=arguments.get("force", False),
            timeout_s=arguments.get("timeout-s", acts.SHUTDOWN_DEADLINE_S),
        )
        self.ended.set()
        return {"how": how}

    async def _set(self, arguments: Arguments) -> Any:
        low, high = DELAY_RANGE_MS
        value = arguments["value"]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(
                f"checkpoint-delay must be a whole number of milliseconds from {low} to {high}, "
                f"not {value!r}."
            )
        before = self.state.delay_ms
        await acts.set_checkpoint_delay(self.state, value)
        return {"name": arguments["name"], "before": before, "after": value}

    async def _checkpoint(self, arguments: Arguments) -> Any:
        view = await acts.checkpoint(self.state)
        return {"count": view.checkpoints.count, "pause-ms": view.checkpoints.last_pause_ms}

    async def _qmp(self, arguments: Arguments) -> Any:
        vm = self.state.seats[arguments["node"]].vm
        if vm is None:
            raise NotProtected(
                f"Node {arguments['node']} has no running QEMU.",
                hint=f"`coloctl status {self.state.spec.name}` shows where the guest runs",
            )
        oob = arguments.get("oob", False)
        command = Command(arguments["execute"], arguments.get("arguments", {}), oob=oob)
        road = vm.monitor.rescue if oob else vm.monitor.execute
        return await road(command, QMP_DEADLINE_S)


def _silent(_name: str, _data: Mapping[str, Any]) -> None:
    """Nobody listens."""


async def serve(
    spec: PairSpec, listener: socket.socket, *, begin: bool | None = None, tell: Emit = _silent
) -> bool:
    """The pair of ``spec`` was supervised until it was stopped; ``listener`` is its control socket.

    ``begin`` starts the pair at once, protected or not; None waits to be asked. ``tell`` gets every
    event that clients get. SIGTERM ends the supervisor alone: QEMU runs on, and the pair's folder
    stays. SIGINT stops the pair, a second one without asking the guest. The folder goes when
    nothing of the pair runs any more. Answers whether SIGINT was its end; raises what a start of
    its own raised.
    """
    folder = paths.make_private(paths.pair_dir(spec.name))
    try:
        ground = await launch.prepare(spec)
    except BaseException:
        leftovers.discard(folder)
        raise
    try:
        with Journal(folder / JOURNAL) as journal:
            servers: list[ControlServer] = []

            def emit(name: str, data: Mapping[str, Any]) -> None:
                for server in servers:
                    server.emit(name, data)
                tell(name, data)

            state = PairState(spec, ground, journal, emit)
            service = Service(state, Supervisor(state))
            server = ControlServer(listener, service.handlers(), version=__version__)
            servers.append(server)
            await _run(service, server, begin)
    finally:
        await ground.aclose()
    if service.failure is not None:
        raise service.failure
    return service.interrupts > 0


async def _run(service: Service, server: ControlServer, begin: bool | None) -> None:
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, leave.set)
    loop.add_signal_handler(signal.SIGINT, service.interrupt)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve())
        watching = group.create_task(service.supervisor.run(leave))
        stopped = group.create_task(service.ended.wait())
        left = group.create_task(leave.wait())
        if begin is not None:
            group.create_task(service.begin(protect=begin))
        await asyncio.wait({serving, stopped, left}, return_when=asyncio.FIRST_COMPLETED)
        # Between its fence and its promotion a failover has no guest running anywhere.
        await service.state.interrupt(spare="" if service.ended.is_set() else "failover")
        if service.ended.is_set() and service.state.running():
            await service.end()
        leave.set()
        service.ended.set()
        await watching
        if not service.state.running():
            # While this socket still answers, nobody else takes the folder for a stale one.
            leftovers.discard(service.state.ground.folder)
        await server.aclose()

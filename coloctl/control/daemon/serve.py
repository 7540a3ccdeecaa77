"""Run the supervisor of one pair as a process: its loop and its control socket.

Called by `cli.verbs.run` and `control.daemon.early`. Adopts what an earlier supervisor left
(`supervisor.adopt`), runs `supervisor.loop` and serves `control.server`.

Invariant: the folder of the pair stays until no QEMU of the pair runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from pathlib import Path

from coloctl import __version__, paths
from coloctl.colo.ground import Facts, Ground, placed
from coloctl.colo.inspect import prepare
from coloctl.control.daemon.home import Home
from coloctl.control.server import ControlServer
from coloctl.control.service import Service
from coloctl.errors import ColoctlError
from coloctl.host.blocking import keep_ready
from coloctl.journal import Journal
from coloctl.model.event import Kind, Record
from coloctl.model.pair import PairSpec
from coloctl.model.pairevent import PairEvent
from coloctl.supervisor import leftovers
from coloctl.supervisor.adopt import Adoption
from coloctl.supervisor.leftover import JOURNAL
from coloctl.supervisor.loop import Supervisor
from coloctl.supervisor.pair_hosts import Hosts, opened, sweep_elsewhere
from coloctl.supervisor.started import Started, write
from coloctl.supervisor.state import Emit, PairState
from coloctl.urgency import has_started, hurry

log = logging.getLogger(__name__)


def _ignored(event: PairEvent) -> None:
    """Drop ``event``: this supervisor's caller listens to none."""


async def serve(
    spec: PairSpec,
    listener: socket.socket,
    *,
    facts: Facts | None = None,
    hosts: Hosts | None = None,
    begin: bool | None = None,
    tell: Emit = _ignored,
    metrics: str = "",
) -> bool:
    """Supervise the pair of ``spec`` until it is stopped; ``listener`` is its control socket.

    ``facts`` were found when the pair was started; without them its hosts are looked at now.
    ``hosts`` are open already, and closed by this. What an earlier supervisor left in the pair's
    folder is taken over first. Otherwise ``begin`` starts the pair at once, protected or not; None
    waits to be asked. ``tell`` gets every event that clients get. ``metrics`` is an address for
    `control.daemon.http`. SIGTERM ends the supervisor alone: QEMU runs on, and the folder stays
    until nothing of the pair runs. SIGINT stops the pair, a second one without asking the guest.
    Return whether SIGINT was its end; raises what a start of its own raised.
    """
    folder = paths.make_private(paths.pair_dir(spec.name))
    ground = await _ground(spec, folder, facts, hosts)
    spec = placed(spec, ground.facts)
    try:
        with Journal(folder / JOURNAL) as journal:
            servers: list[ControlServer] = []
            hearers = [tell]

            def emit(event: PairEvent) -> None:
                for server in servers:
                    server.emit(event)
                for hear in hearers:
                    try:
                        hear(event)
                    except Exception:  # no decision depends on a listener in this process
                        log.exception("The event %s could not be delivered", event.NAME)

            state = PairState(spec, ground, journal, emit)
            supervisor = Supervisor(state)
            service = Service(state, supervisor)
            server = ControlServer(listener, service.handlers(), version=__version__)
            servers.append(server)
            service.last_event = lambda: server.seq
            async with contextlib.AsyncExitStack() as stack:
                if metrics:
                    from coloctl.control.daemon.export import exporting  # costs 2 MiB

                    export = await stack.enter_async_context(exporting(spec.name, metrics))
                    hearers.append(export.event)
                    export.watch(state.view)
                    supervisor.timed = export.metrics.beat
                    supervisor.heard = export.observed
                await _run(service, server, Home(state, journal, server), begin, journal)
    finally:
        await ground.aclose()
    if service.failure is not None:
        raise service.failure
    return service.interrupts > 0


async def _ground(
    spec: PairSpec, folder: Path, facts: Facts | None, hosts: Hosts | None = None
) -> Ground:
    """Open the hosts; what is found out about them now is written for a supervisor that follows.

    Beside QEMUs that an earlier coloctl started nothing is written: theirs may be another binary.
    """
    try:
        ground = await prepare(spec, facts, stays=True, hosts=hosts)
        if facts is None and not await leftovers.living(folder, ground.hosts):
            with contextlib.suppress(OSError):  # a supervisor that follows looks for itself then
                write(folder, Started(spec, ground.facts))
    except BaseException:
        async with opened(folder, dial=False) as there:
            if not await leftovers.living(folder, there):
                leftovers.discard(folder)
        raise
    return ground


async def _run(
    service: Service,
    server: ControlServer,
    home: Home,
    begin: bool | None,
    journal: Journal,
) -> None:
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    log.info("The supervisor runs with %s priority.", hurry() or "the normal")
    has_started()
    keep_ready()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(service.supervisor.run(leave))
        await asyncio.sleep(0)  # from here on it can be given seats to watch
        adoption = await _adoption(service, journal.history.records)
        if adoption is not None and not await _adopted(adoption, service):
            leave.set()
            return
        # Not before: until the seats are taken, an end by signal is as good as any other.
        # A terminal that closes ends what runs in it; the guest is none of its business.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) wants it ignored
                loop.add_signal_handler(number, leave.set)
        loop.add_signal_handler(signal.SIGINT, service.interrupt)
        if adoption is not None:
            group.create_task(_finish(adoption, service))
        elif begin is not None:
            group.create_task(service.begin(protect=begin))
        serving = group.create_task(server.serve())
        keeping = group.create_task(home.keep())
        stopped = group.create_task(service.ended.wait())
        left = group.create_task(leave.wait())
        await asyncio.wait({serving, stopped, left}, return_when=asyncio.FIRST_COMPLETED)
        keeping.cancel()
        # Between its fence and its promotion a failover has no guest running anywhere.
        await service.state.interrupt(
            "Its supervisor ends.", spare="" if service.ended.is_set() else "failover"
        )
        if service.ended.is_set() and service.state.running():
            await service.end()
        leave.set()
        service.ended.set()
        await watching
        if not service.state.running() and not service.state.left:
            journal.leave()
            await sweep_elsewhere(service.state.ground.folder, service.state.ground.hosts)
            # While this socket still answers, no other starter takes the folder for a stale one.
            leftovers.discard(service.state.ground.folder)
        await server.aclose()


async def _adoption(service: Service, history: tuple[Record, ...]) -> Adoption | None:
    """Return the adoption of what an earlier supervisor left, where one did."""
    state, supervisor = service.state, service.supervisor
    told = [one for one in history if one.kind is not Kind.NOTE]
    ground = state.ground
    if not told and not await leftovers.running_in(ground.folder, ground.hosts):
        return None
    return Adoption(
        state,
        history,
        watch=supervisor.watch,
        entered=supervisor.entered,
        missed=supervisor.missed,
    )


async def _adopted(adoption: Adoption, service: Service) -> bool:
    """Take over both nodes; where that fails, set `failure` and change nothing."""
    adopting = asyncio.create_task(adoption.adopt())
    try:
        # A guest that dies meanwhile interrupts the act, and has been dealt with then.
        await asyncio.wait({adopting})
    finally:
        adopting.cancel()
    error = None if adopting.cancelled() else adopting.exception()
    if isinstance(error, ColoctlError):
        service.failure = error
    elif error is not None:
        raise error
    return error is None


async def _finish(adoption: Adoption, service: Service) -> None:
    if await adoption.finish():
        service.ended.set()

"""Use one pair from Python: await each act of the command line, and inject faults.

Used by `pytest_plugin`; asks through `control.acts`, starts with `control.daemon.spawn`.
Invariant: at the end of the block what it started is ended, and each of its faults is healed.
Nothing here belongs to an event loop, so a pair may be used from one loop after another.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from coloctl import pairfile, paths
from coloctl.api import faults
from coloctl.api.faults import FaultHandle
from coloctl.api.thread import ThreadConnection, awaited
from coloctl.control import acts as waits
from coloctl.control.acts import QUERY_WAIT_S, Acts, Document, read_view
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.control.daemon.spawn import SpawnedSupervisor
from coloctl.errors import NotProtected, Unreachable, UsageError
from coloctl.model.pair import NODES, PairSpec
from coloctl.model.protection import Protection
from coloctl.model.view import PairView

T = TypeVar("T")

#: Each act under way holds a thread, and so does each reader of events while it waits.
THREADS = 32


class Pair:
    """A pair whose supervisor answers inside the ``async with`` block.

    Acts raise what the verbs of the command line complain about: `coloctl.errors.ColoctlError`.
    One that is cancelled is no longer waited for; its supervisor goes on with it.
    """

    def __init__(self, name: str, own: PairSpec | None, *, keep: bool = False) -> None:
        """Note the pair; ``own`` is what to start a supervisor for, None where one runs."""
        self.name = name
        self._own = own
        self._keep = keep
        self._born: SpawnedSupervisor | None = None
        self._closed = False
        self._faults: list[faults.Active] = []
        self._threads = ThreadPoolExecutor(THREADS, f"coloctl-{name}")

    # -- the block

    async def open(self) -> Self:
        """Start a supervisor for the pair, or connect to the one that runs.

        Raises `PairBusy` when the pair has a supervisor already, `NoSuchPair` when it was to be
        there and is not.
        """
        try:
            await self.in_thread(self._begin)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Heal every fault; nothing of a pair of one's own is left unless it is kept."""
        if not self._closed:
            self._closed = True
            try:
                await awaited(self._threads, self._end)
            finally:
                self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def keep(self) -> None:
        """Keep the pair beyond the block."""
        self._keep = True

    def _begin(self) -> None:
        if self._own is None:
            self._connect().close()
            return
        pairfile.check_files(self._own)
        self._born = SpawnedSupervisor(self._own)
        atexit.register(self._end)  # for callers that never leave the block
        self._born.connect().close()

    def _end(self) -> None:
        with contextlib.ExitStack() as ends:
            ends.callback(self._end_own)
            for fault in self._faults:
                ends.callback(fault.heal)

    def _end_own(self) -> None:
        born, self._born = self._born, None
        if born is None:
            return
        atexit.unregister(self._end)
        if self._keep:
            born.keep()
        else:
            born.end()

    # -- looking

    async def status(self) -> PairView:
        """Return the pair as last observed: protection, generation, nodes, checkpoints."""
        return await self._act(Acts.view)

    async def explain(self) -> Document:
        """Return the document of `coloctl explain -f json`: reasons, and what would happen next."""
        return await self._act(Acts.explanation_document)

    async def history(self) -> list[Document]:
        """List every failover of the pair, oldest first."""
        return list((await self._act(Acts.history_document))["failovers"])

    async def events(self) -> AsyncIterator[ControlEvent]:
        """Iterate over all events from the first step on, until the pair is stopped and gone.

        A reader that is too slow gets CLIENT_DROPPED, and then `Unreachable`.
        """
        client = await self.in_thread(self._connect)
        try:
            stream = client.events()
            while event := await self.in_thread(lambda: next(stream, None), client.hang_up):
                yield event
        except Unreachable:
            if paths.pair_dir(self.name).exists():
                raise
        finally:
            client.close()

    async def wait_for(
        self,
        state: Protection | str,
        *,
        timeout: float = waits.PROTECT_WAIT_S,
        generation: int = 0,
    ) -> PairView:
        """Wait until the pair is in ``state``; with ``generation``, of that one or a later one.

        The generation grows with every failover, so it distinguishes the state before one from
        the state after it. Raises `DeadlineMissed`.
        """
        wanted = str(Protection(state))

        def wait(acts: Acts) -> PairView:
            acts.wait_for(wanted, timeout, generation)
            return acts.view()

        return await self._act(wait)

    # -- acting

    async def start(
        self,
        *,
        protect: bool = True,
        begin_on: str | None = None,
        timeout: float = waits.PROTECT_WAIT_S,
    ) -> PairView:
        """Start the guest; it runs, and is protected unless that is not asked for.

        ``begin_on`` names the node whose disks are taken even where the other's are newer.
        """
        return read_view(
            await self._act(
                lambda acts: acts.start(protect=protect, begin_on=begin_on, wait_s=timeout)
            )
        )

    async def protect(self, *, timeout: float = waits.PROTECT_WAIT_S) -> PairView:
        """Bring the pair into COLO; a guest that does not run is started first."""

        def protect(acts: Acts) -> Document:
            if acts.view().protection is Protection.DOWN:
                return acts.start(wait_s=timeout)
            return acts.protect(timeout)

        return read_view(await self._act(protect))

    async def reprotect(self, *, timeout: float = waits.PROTECT_WAIT_S) -> PairView:
        """Make a new secondary for a guest that runs alone; the pair is in COLO afterwards."""
        return read_view(await self._act(lambda acts: acts.protect(timeout)))

    async def unprotect(self) -> PairView:
        """End the secondary; the guest runs on alone where it runs."""
        return read_view(await self._act(Acts.unprotect))

    async def failover(
        self, to: str | None = None, *, force: bool = False, timeout: float = waits.FAILOVER_WAIT_S
    ) -> Document:
        """Prove one node dead and let the other run the guest; return the timeline."""
        timeline = await self._act(lambda acts: acts.failover(to, force=force, wait_s=timeout))
        return timeline.to_json()

    async def switchover(
        self, *, force: bool = False, timeout: float = waits.SWITCHOVER_WAIT_S
    ) -> Document:
        """Exchange the roles and protect again; ``force``: also where TCG may run stale code."""
        timeline = await self._act(lambda acts: acts.switchover(force=force, wait_s=timeout))
        return timeline.to_json()

    async def pause(self) -> None:
        """Leave failovers to an operator from now on."""
        await self._act(Acts.pause)

    async def resume(self) -> None:
        """Allow failovers by the supervisor again."""
        await self._act(Acts.resume)

    async def set(self, **settings: int | str) -> None:
        """Set all of these, or none: ``set(checkpoint_delay=500)``; `UsageError` without any."""
        if not settings:
            raise UsageError("There is nothing to set.", hint="such as checkpoint_delay=500")
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        await self._act(lambda acts: acts.set(named))

    async def checkpoint(self) -> int:
        """Take one checkpoint; return its number."""
        return (await self._act(Acts.checkpoint)).count

    async def verify(self, *, memory: bool | None = None) -> Document:
        """Compare both nodes, ``memory`` or disks alone; the document of `verify -f json`."""
        return (await self._act(lambda acts: acts.verify(memory=memory))).to_json()

    async def qmp(self, node: str, command: str, /, **arguments: Any) -> Any:
        """Send a QMP command and return the answer; ``node`` is a, b, primary or secondary.

        Names of arguments are QEMU's own: ``**{"node-name": "disk0"}`` for those with dashes.
        """

        def ask(acts: Acts) -> Any:
            return acts.qmp(_named(acts, node), command, arguments)

        return await self._act(ask)

    async def stop(self, *, force: bool = False, timeout: float = waits.SHUTDOWN_WAIT_S) -> str:
        """Shut the guest down and end the pair; return how the guest ended.

        It may take ``timeout`` seconds before it is ended; with ``force`` it is not asked.
        """
        return await self._act(lambda acts: acts.stop(force=force, shutdown_s=timeout))

    # -- hurting

    async def inflict(self, kind: str, target: str, /, **params: Any) -> FaultHandle:
        """Inject the fault ``kind``; kinds, targets and parameters are those of scenarios.

        Raises `UsageError` for an unknown one, `NotProtected` when there was nothing to hit.
        """

        def inject() -> faults.Active:
            fault = faults.inject(self.name, kind, target, params)
            self._faults.append(fault)
            return fault

        return FaultHandle(await self.in_thread(inject), self.in_thread)

    async def kill(self, target: str = "primary") -> FaultHandle:
        """Kill primary, secondary, a, b, both, or supervisor by SIGKILL."""
        return await self.inflict("kill", target)

    async def freeze(self, target: str = "primary") -> FaultHandle:
        """Stop the same targets by SIGSTOP, until they are thawed."""
        return await self.inflict("freeze", target)

    async def thaw(self) -> None:
        """Resume each frozen process."""
        await self.heal("freeze")

    async def cut(self, link: str = "replication") -> FaultHandle:
        """Cut that link of the lab, until it is healed."""
        return await self.inflict("cut", link)

    async def heal(self, kind: str = "") -> None:
        """Heal every fault of that kind, or of any, the latest first."""
        chosen = [one for one in self._faults if kind in ("", one.fault.kind)]

        def heal() -> None:
            for one in reversed(chosen):
                one.heal()

        await self.in_thread(heal)

    # -- underneath

    async def in_thread(self, work: Callable[[], T], hurry: Callable[[], None] = lambda: None) -> T:
        """Run ``work`` in a thread; a cancellation calls ``hurry``. `UsageError` once closed."""
        if self._closed:
            raise UsageError(f"The block of the pair {self.name} was left.", hint="open another")
        return await awaited(self._threads, work, hurry)

    async def ask(self, do: Callable[[Acts], T]) -> T:
        """Call ``do`` in a thread with a connection of its own; return its answer."""
        return await self._act(do)

    async def _act(self, do: Callable[[Acts], T]) -> T:
        line = ThreadConnection()

        def work() -> T:
            with line.hold(self._connect()) as client:
                return do(Acts(client))

        return await self.in_thread(work, line.cut)

    def _connect(self) -> ControlClient:
        return ControlClient.connect(paths.control_socket(self.name), QUERY_WAIT_S)


def _named(acts: Acts, node: str) -> str:
    """Return the node's name, where its role was given."""
    if node in NODES:
        return node
    for one in acts.view().nodes.values():
        if one.role == node:
            return one.name
    raise NotProtected(f"{acts.pair} has no {node} now.", hint=f"`coloctl status {acts.pair}`")


class Front:
    """``coloctl.pair``: pairs by their file, or by name."""

    def __call__(self, file: str | os.PathLike[str], *, keep: bool = False) -> Pair:
        """Open the pair that the file describes, for ``async with``; a supervisor serves the block.

        Nothing else is started before it is asked for, and everything is ended with the block,
        unless ``keep``. Raises `SpecError`.
        """
        own = pairfile.load(Path(file).absolute())
        return Pair(own.name, own, keep=keep)

    def attach(self, name: str) -> Pair:
        """Open a pair that runs, for ``async with``; it goes on after the block, faults healed."""
        return Pair(name, None)


#: ``async with coloctl.pair("web.toml") as pair``.
pair = Front()

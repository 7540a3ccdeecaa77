"""One pair from Python, every act awaited: what the command line asks, and faults besides.

Invariant: what the block has started is ended, and what it has hurt is healed, when the block is
left, however that happens. Nothing here belongs to an event loop, so a pair may be used from one
loop after another.
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
from coloctl.control import acts as patience
from coloctl.control.acts import QUERY_S, Acts, Document, read_view
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
        """Nothing is done yet. ``own`` is the pair to start a supervisor for; None: one runs."""
        self.name = name
        self._own = own
        self._keep = keep
        self._born: SpawnedSupervisor | None = None
        self._closed = False
        self._faults: list[faults.Active] = []
        self._threads = ThreadPoolExecutor(THREADS, f"coloctl-{name}")

    # -- the block

    async def open(self) -> Self:
        """A supervisor of one's own serves the pair, or the one that runs has answered.

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
        """Every fault is healed, and nothing of a pair of one's own is left unless it is kept."""
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
        """The pair outlives the block."""
        self._keep = True

    def _begin(self) -> None:
        if self._own is None:
            self._connect().close()
            return
        pairfile.check_files(self._own)
        self._born = SpawnedSupervisor(self._own)
        atexit.register(self._end)  # for whoever never leaves the block
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
        """The pair as last seen: protection, generation, nodes, checkpoints."""
        return await self._act(Acts.view)

    async def explain(self) -> Document:
        """Why it is so and what would happen next: the document of `coloctl explain -f json`."""
        return await self._act(Acts.explanation)

    async def history(self) -> list[Document]:
        """Every failover of the pair, oldest first."""
        past: list[Document] = (await self._act(Acts.history))["failovers"]
        return past

    async def events(self) -> AsyncIterator[ControlEvent]:
        """Everything that happens from the first step on, until the pair is stopped and gone.

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
        timeout: float = patience.PROTECT_S,
        generation: int = 0,
    ) -> PairView:
        """The pair is in ``state``; with ``generation``, only in that one or a later one.

        The generation grows with every failover, so it tells the state before one from the state
        after it. Raises `DeadlineMissed`.
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
        timeout: float = patience.PROTECT_S,
    ) -> PairView:
        """The guest runs, and is protected unless that is not asked for.

        ``begin_on`` names the node whose disks are taken even where the other's are newer.
        """
        return read_view(
            await self._act(
                lambda acts: acts.start(protect=protect, begin_on=begin_on, wait_s=timeout)
            )
        )

    async def protect(self, *, timeout: float = patience.PROTECT_S) -> PairView:
        """The pair is in COLO; a guest that does not run is started first."""

        def protect(acts: Acts) -> Document:
            if acts.view().protection is Protection.DOWN:
                return acts.start(wait_s=timeout)
            return acts.protect(timeout)

        return read_view(await self._act(protect))

    async def reprotect(self, *, timeout: float = patience.PROTECT_S) -> PairView:
        """A guest that ran alone has a fresh secondary; the pair is in COLO."""
        return read_view(await self._act(lambda acts: acts.protect(timeout)))

    async def unprotect(self) -> PairView:
        """The guest runs on alone where it runs."""
        return read_view(await self._act(Acts.unprotect))

    async def failover(
        self, to: str | None = None, *, force: bool = False, timeout: float = patience.FAILOVER_S
    ) -> Document:
        """One node is dead, proven, and the other runs the guest; answers the timeline."""
        return await self._act(lambda acts: acts.failover(to, force=force, wait_s=timeout))

    async def switchover(
        self, *, force: bool = False, timeout: float = patience.SWITCHOVER_S
    ) -> Document:
        """Exchange the roles and protect again; ``force``: also where TCG may run stale code."""
        return await self._act(lambda acts: acts.switchover(force=force, wait_s=timeout))

    async def pause(self) -> None:
        """Nobody but an operator fails the pair over."""
        await self._act(Acts.pause)

    async def resume(self) -> None:
        """The supervisor fails over by itself again."""
        await self._act(Acts.resume)

    async def set(self, **settings: int | str) -> None:
        """All of these settings hold, or none: ``set(checkpoint_delay=500)``."""
        if not settings:
            raise UsageError("There is nothing to set.", hint="such as checkpoint_delay=500")
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        await self._act(lambda acts: acts.set(named))

    async def checkpoint(self) -> int:
        """Both nodes hold one checkpoint more; answers the number of it."""
        return int((await self._act(Acts.checkpoint))["count"])

    async def verify(self, *, memory: bool | None = None) -> Document:
        """Compare both nodes, ``memory`` or disks alone; the document of `verify -f json`."""
        return await self._act(lambda acts: acts.verify(memory=memory))

    async def qmp(self, node: str, command: str, /, **arguments: Any) -> Any:
        """What the QEMU of a node returned; ``node`` is a, b, primary or secondary.

        Names of arguments are QEMU's own: ``**{"node-name": "disk0"}`` for those with dashes.
        """

        def ask(acts: Acts) -> Any:
            return acts.qmp(_named(acts, node), command, arguments)

        return await self._act(ask)

    async def stop(self, *, force: bool = False, timeout: float = patience.SHUTDOWN_S) -> str:
        """The guest was shut down, nothing of the pair is left; answers how the guest ended.

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
        """Let each frozen process run again."""
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
        """What blocking ``work`` returned; a cancellation calls ``hurry`` and waits for its end."""
        if self._closed:
            raise UsageError(f"The block of the pair {self.name} was left.", hint="open another")
        return await awaited(self._threads, work, hurry)

    async def ask(self, do: Callable[[Acts], T]) -> T:
        """What ``do`` answered, called in a thread with a connection of its own."""
        return await self._act(do)

    async def _act(self, do: Callable[[Acts], T]) -> T:
        line = ThreadConnection()

        def work() -> T:
            with line.hold(self._connect()) as client:
                return do(Acts(client))

        return await self.in_thread(work, line.cut)

    def _connect(self) -> ControlClient:
        return ControlClient.connect(paths.control_socket(self.name), QUERY_S)


def _named(acts: Acts, node: str) -> str:
    """The node's name, where its role was given."""
    if node in NODES:
        return node
    for one in acts.view().nodes.values():
        if one.role == node:
            return one.name
    raise NotProtected(f"{acts.pair} has no {node} now.", hint=f"`coloctl status {acts.pair}`")


class Front:
    """``coloctl.pair``: pairs by their file, or by name."""

    def __call__(self, file: str | os.PathLike[str], *, keep: bool = False) -> Pair:
        """The pair that the file describes, for ``async with``: its supervisor serves that block.

        Nothing else is started before it is asked for, and everything is ended with the block,
        unless ``keep``. Raises `SpecError`.
        """
        own = pairfile.load(Path(file).absolute())
        return Pair(own.name, own, keep=keep)

    def attach(self, name: str) -> Pair:
        """A pair that runs, for ``async with``: it goes on behind the block, its faults healed."""
        return Pair(name, None)


#: ``async with coloctl.pair("web.toml") as pair``.
pair = Front()

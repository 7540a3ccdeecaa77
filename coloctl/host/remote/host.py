"""Implement `Host` for another machine, through the agent that runs there.

`host.open_host` makes it for an address of ssh. `host.remote.contact` keeps the connection, and
`host.agent.work` lists what the agent performs. Nothing is asked before the first use or `ready`.

Invariant: an object that this host has made means the same thing there for as long as the agent's
session lasts. In the next one processes are looked up again, and all else is lost with a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from coloctl.clock import CLOCK, Clock
from coloctl.errors import ColoctlError, HostOutOfReach, Unreachable
from coloctl.host.agent.handles import ProcessHandle
from coloctl.host.agent.work_files import FileWork
from coloctl.host.agent.work_processes import ProcessWork
from coloctl.host.agent.work_wires import WireWork
from coloctl.host.identity import Identity
from coloctl.host.records import Completed, DeathProof, Machine, Reach, Stray
from coloctl.host.remote.contact import AgentContact
from coloctl.host.remote.dial import Dial
from coloctl.host.remote.files import RemoteFiles
from coloctl.host.remote.links import RemoteLinks
from coloctl.host.remote.process import LOOK_WAIT_S, RemoteProcess, out_of_reach
from coloctl.host.remote.watches import RemoteConversation
from coloctl.host.wire.relay import relay
from coloctl.host.wire.token import Tokens
from coloctl.model.launch import Launch

#: A program on a cold disk was seen to take seconds until its image is loaded.
LAUNCH_WAIT_S = 20.0

#: Operations whose answer is a hold, alone or as ``hold``: given back where no caller waits for it.
_HOLDERS = frozenset(
    one.__name__
    for one in (
        *(ProcessWork.adopt, ProcessWork.converse, FileWork.scratch, FileWork.workspace),
        *(WireWork.listen, WireWork.accept, WireWork.connect, WireWork.unix_channels),
        *(WireWork.beacon, WireWork.deliveries),
        *(WireWork.first_connection, WireWork.first_packet),
    )
)


class RemoteHost(RemoteFiles, RemoteLinks):
    """A machine at the other end of a connection; implements `Host`."""

    def __init__(self, name: str, dial: Dial, *, pair: str = "", clock: Clock = CLOCK) -> None:
        """Prepare to dial. With ``pair`` the agent stays when a connection breaks, and waits."""
        self.name = name
        self._contact = AgentContact(
            dial, pair=pair, renewed=self._look_up, unclaimed=self._give_back, clock=clock
        )
        self._tokens = Tokens()
        self._processes: set[RemoteProcess] = set()
        self._streams: weakref.WeakKeyDictionary[socket.socket, int] = weakref.WeakKeyDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the session with the agent; processes stay, what else it holds is released."""
        await self._contact.aclose(keep=any(one.alive() for one in self._processes))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def machine(self) -> Machine:
        """See `Host.machine`. Raises `HostOutOfReach` before the first contact."""
        return self._contact.machine

    @property
    def reach(self) -> Reach:
        """See `Host.reach`."""
        return self._contact.reach

    async def ready(self, deadline_s: float) -> None:
        """See `Host.ready`. Raises `HostOutOfReach`."""
        await self._contact.ready(deadline_s)

    async def reached(self, than: Reach) -> Reach:
        """See `Host.reached`."""
        return await self._contact.reached(than)

    # -- processes

    async def launch(self, program: Launch, *, stderr: Path, node: str = "") -> RemoteProcess:
        """See `Host.launch`."""
        handle = await self._contact.call(
            ProcessWork.launch, LAUNCH_WAIT_S, program=program, stderr=stderr, node=node
        )
        return self._hold(handle, node, program.sockets.values())

    async def adopt(
        self,
        identity: Identity,
        *,
        node: str = "",
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> RemoteProcess | None:
        """See `Host.adopt`."""
        handle = await self._contact.call(
            ProcessWork.adopt,
            LOOK_WAIT_S,
            identity=identity,
            node=node,
            leader=leader,
            sockets=tuple(sockets),
        )
        return None if handle is None else self._hold(handle, node, sockets)

    def known(
        self,
        identity: Identity,
        *,
        node: str,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> RemoteProcess:
        """See `Host.known`. It is looked up when the machine is reached, or now where it is."""
        process = self._add(
            RemoteProcess(self._contact, identity, node=node, leader=leader, sockets=sockets)
        )
        if not self._contact.reach.out:
            self._start(process.look_up(self._contact.machine))
        return process

    async def kill(
        self,
        identity: Identity,
        *,
        node: str,
        deadline_s: float,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> DeathProof:
        """See `Host.kill`. Raises `FencingFailed`."""
        try:
            proof = await self._contact.call(
                ProcessWork.kill,
                deadline_s,
                identity=identity,
                node=node,
                deadline_s=deadline_s,
                leader=leader,
                sockets=tuple(sockets),
            )
        except HostOutOfReach as error:
            raise out_of_reach(node, error) from None
        return DeathProof(
            proof.pid,
            proof.start_time,
            proof.how,
            self._contact.ours(proof.at_s),
            proof.exit_code,
        )

    def _hold(self, handle: ProcessHandle, node: str, sockets: Collection[Path]) -> RemoteProcess:
        process = RemoteProcess(
            self._contact, handle.identity, node=node, leader=handle.leader, sockets=sockets
        )
        process.bind(handle)
        return self._add(process)

    def _add(self, process: RemoteProcess) -> RemoteProcess:
        self._processes = {one for one in self._processes if not one.closed} | {process}
        return process

    async def _look_up(self, machine: Machine) -> None:
        """Look all processes up in a session that has begun; their tokens are others then."""
        self._tokens = Tokens()
        self._streams.clear()
        await asyncio.gather(*(process.look_up(machine) for process in self._processes))

    async def still_held(
        self, *, images: Collection[Path], taps: Collection[str], besides: Identity | None = None
    ) -> tuple[str, ...]:
        """See `Host.still_held`."""
        return await self._contact.call(
            ProcessWork.still_held,
            LOOK_WAIT_S,
            images=tuple(images),
            taps=tuple(taps),
            besides=besides,
        )

    async def holders(self, sockets: Collection[Path]) -> Mapping[Path, tuple[Stray, ...]]:
        """See `Host.holders`."""
        return await self._contact.call(ProcessWork.holders, LOOK_WAIT_S, sockets=tuple(sockets))

    # -- streams and programs

    async def monitor(self, path: Path, deadline_s: float) -> socket.socket:
        """See `Host.monitor`. A socket here, relayed to the one there."""
        number = await self._contact.call(
            WireWork.monitor, deadline_s, path=path, deadline_s=deadline_s
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._streams[ours] = number
        self._start(relay(theirs, self._contact.stream(number), hold_of=self._tokens.hold_of))
        return ours

    async def speaker(self, monitor: socket.socket, deadline_s: float) -> Identity:
        """See `Host.speaker`. Raises `Unreachable`."""
        if (number := self._streams.get(monitor)) is None:
            raise Unreachable("A monitor hung up before its process was known.")
        return await self._contact.call(
            WireWork.speaker, deadline_s, stream=number, deadline_s=deadline_s
        )

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        """See `Host.run`."""
        return await self._contact.call(
            ProcessWork.run, deadline_s, argv=tuple(argv), deadline_s=deadline_s, stdin=stdin
        )

    @asynccontextmanager
    async def converse(self, argv: Sequence[str]) -> AsyncIterator[RemoteConversation]:
        """See `Host.converse`."""
        handle = await self._contact.call(ProcessWork.converse, LAUNCH_WAIT_S, argv=tuple(argv))
        stream = self._contact.stream(handle.stream)
        conversation = RemoteConversation(self._contact, handle.hold, stream, Path(argv[0]).name)
        try:
            yield conversation
        finally:
            conversation.close()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _give_back(self, do: str, answer: Any) -> None:
        """Undo what was answered too late: no caller waits for it any more."""
        if do == ProcessWork.launch.__name__:
            self._start(self._discard(int(answer["hold"])))
        elif do == WireWork.monitor.__name__:
            self._contact.stream(int(answer)).reset("No caller waits for this monitor.")
        elif do in _HOLDERS and answer is not None:
            for one in answer if isinstance(answer, list) else [answer]:
                self._contact.release(int(one["hold"] if isinstance(one, dict) else one))

    async def _discard(self, hold: int) -> None:
        """Kill what was launched for a caller that no longer waits."""
        with contextlib.suppress(ColoctlError):
            await self._contact.ask(
                ProcessWork.end,
                LAUNCH_WAIT_S,
                hold=hold,
                gently=False,
                deadline_s=LAUNCH_WAIT_S,
            )
        self._contact.release(hold)

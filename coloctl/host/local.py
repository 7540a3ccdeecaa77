"""Implement `Host` for this machine, with one thread for what must happen inside the host.

`host.open_host` makes it, and `host.netns` adds a namespace; it calls the other modules of this
package. Every operation that depends on the network namespace goes through that thread: making
sockets, starting programs, reading ``/proc/.../net``. Sockets keep the namespace in which they were
made, so connecting and waiting stay in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

from coloctl.errors import DeadlineMissed, PreconditionFailed
from coloctl.host import launch, netdevice, resource_use
from coloctl.host.beacon import ICMP, DatagramBeacon, udp_beacon
from coloctl.host.converse import conversing
from coloctl.host.delivery import NETLINK_SOCK_DIAG, TcpDeliveries
from coloctl.host.holders import holders
from coloctl.host.identity import Identity
from coloctl.host.late_ends import LateEnds
from coloctl.host.launch import StartedProgram
from coloctl.host.listen import connect_unix, ports_in_use, speaker
from coloctl.host.local_access import LocalAccess, family
from coloctl.host.local_files import LocalFiles
from coloctl.host.machine import this_machine
from coloctl.host.packet import FrameWatch, SynWatch
from coloctl.host.program import Program, looked
from coloctl.host.recorded_program import adopt_program, kill_program, known_program
from coloctl.host.records import Completed, Contact, DeathProof, Machine, Reach, Stray
from coloctl.host.tap import check, held, is_up, set_up
from coloctl.host.watching import Conversation, FirstConnection, FirstPacket
from coloctl.model.launch import Launch
from coloctl.model.wires import Endpoint
from coloctl.urgency import keep_up

T = TypeVar("T")

#: Of what a helper program prints, this much is kept (per stream).
OUTPUT_LIMIT = 16 * 1024 * 1024


class LocalHost(LocalFiles, LocalAccess):
    """The machine and namespace in which this process runs; implements `Host`."""

    def __init__(self, name: str = "local", enter: Callable[[], None] | None = None) -> None:
        """Start the threads; ``enter`` moves the host's own into its namespace, and may raise.

        Blocks for the time of that one call (microseconds).
        """
        self.name = name
        self._late = LateEnds()
        self._inner = ThreadPoolExecutor(1, thread_name_prefix=name)
        # The fence has a thread of its own: it never waits for a launch. What it does to one tap it
        # does in order.
        self._fence = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-tap")
        try:
            if enter is not None:
                self._inner.submit(enter).result()
            udp = socket.AF_INET, socket.SOCK_DGRAM
            self._control = self._inner.submit(socket.socket, *udp).result()
            self._links = self._inner.submit(netdevice.links).result()
        except BaseException:
            self._inner.shutdown()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @property
    def machine(self) -> Machine:
        """See `Host.machine`; raises `PreconditionFailed` for a folder that others can change.

        Looked at each time: records in a folder that became writable for others are not believed.
        """
        return this_machine()

    @property
    def reach(self) -> Reach:
        """See `Host.reach`: always here."""
        return Reach(Contact.HERE, 0.0)

    async def ready(self, deadline_s: float) -> None:
        """Return at once: this machine is here."""
        return

    async def reached(self, than: Reach) -> Reach:
        """Wait until cancelled: how this machine is reached never changes."""
        changed: asyncio.Future[Reach] = asyncio.get_running_loop().create_future()
        return await changed

    async def aclose(self) -> None:
        """Release threads and sockets; processes stay, and cancelled operations are undone."""
        for thread in (self._inner, self._fence):
            await asyncio.to_thread(thread.shutdown)
        await self._late.aclose()
        self._control.close()
        self._links.close()

    async def launch(
        self,
        program: Launch,
        *,
        stderr: Path,
        node: str = "",
    ) -> Program:
        """See `Host.launch`. When it is cancelled half-way, no process of it runs on."""
        return await self._inside(
            lambda: launch.spawn(program, stderr=stderr, node=node),
            undo=lambda process: self._late.note(
                process, gone=launch.discard(process, program.sockets.values())
            ),
        )

    async def adopt(
        self,
        identity: Identity,
        *,
        node: str = "",
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> Program | None:
        """See `Host.adopt`."""
        return await adopt_program(identity, node=node, leader=leader, sockets=sockets)

    def known(
        self,
        identity: Identity,
        *,
        node: str,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> Program:
        """See `Host.known`. This machine is never out of reach, so the process is held at once."""
        return known_program(identity, node=node, leader=leader, sockets=sockets)

    async def kill(
        self,
        identity: Identity,
        *,
        node: str,
        deadline_s: float,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> DeathProof:
        """See `Host.kill`."""
        return await kill_program(
            identity, node=node, deadline_s=deadline_s, leader=leader, sockets=sockets
        )

    async def holders(self, sockets: Collection[Path]) -> dict[Path, tuple[Stray, ...]]:
        """See `Host.holders`."""
        return await looked(holders, sockets)

    async def still_held(
        self, *, images: Collection[Path], taps: Collection[str], besides: Identity | None = None
    ) -> tuple[str, ...]:
        """See `Host.still_held`. Takes some 50 microseconds each; waits for no disk."""
        return await resource_use.held(images, taps, self._links, besides)

    async def speaker(self, monitor: socket.socket, deadline_s: float) -> Identity:
        """See `Host.speaker`."""
        return await speaker(monitor, deadline_s)

    async def monitor(self, path: Path, deadline_s: float) -> socket.socket:
        """See `Host.monitor`. Paths are not part of a network namespace."""
        return await connect_unix(path, deadline_s)

    async def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Make an unbound, non-blocking socket of this host's namespace."""

        def make() -> socket.socket:
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            return sock

        return await self._inside(make, undo=socket.socket.close)

    async def beacon(
        self, at: Endpoint, peer: Endpoint, key: bytes, beat_ms: int
    ) -> DatagramBeacon:
        """See `Host.beacon`. This process holds it, so its caller makes its beats."""
        sock = await self.make_socket(family(at.address), socket.SOCK_DGRAM)
        refusals = None
        try:
            with contextlib.suppress(PermissionError):  # it takes CAP_NET_RAW
                protocol = ICMP[sock.family]
                refusals = await self.make_socket(sock.family, socket.SOCK_RAW, protocol)
            return udp_beacon(sock, at, peer, key, self.name, refusals=refusals)
        except BaseException:
            sock.close()
            if refusals is not None:
                refusals.close()
            raise

    async def deliveries(self, at: str, peer: str, ports: Collection[int]) -> TcpDeliveries | None:
        """See `Host.deliveries`."""
        with contextlib.suppress(OSError):  # a kernel without it, or a sandbox that forbids it
            sock = await self.make_socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
            known = TcpDeliveries(sock, at, peer, ports)
            if known.tells():
                return known
            known.close()
        return None

    async def tap(self, name: str, *, up: bool) -> None:
        """See `Host.tap`. It takes two system calls on a socket that is already open."""

        def work() -> None:
            keep_up()  # from the first tap of a pair on, so before a failover
            set_up(self._control, name, up, self.name)

        await launch.claimed(self._fence.submit(work))

    async def tap_held(self, name: str) -> bool:
        """See `Host.tap_held`."""
        return await self._inside(lambda: held(self._control, name))

    async def tap_is_up(self, name: str) -> bool | None:
        """See `Host.tap_is_up`."""
        return is_up(self._control, name)

    async def check_tap(self, name: str) -> None:
        """See `Host.check_tap`."""
        await self._inside(lambda: check(self._control, name, self.name))

    async def ports_in_use(self, address: str) -> set[int]:
        """See `Host.ports_in_use`."""
        return await self._inside(lambda: ports_in_use(address))

    @asynccontextmanager
    async def first_connection(self, tap: str) -> AsyncIterator[FirstConnection]:
        """See `Host.first_connection`; raises `PreconditionFailed` without CAP_NET_RAW."""
        with await self._packets() as packets:
            yield SynWatch(packets, tap, self.name)

    @asynccontextmanager
    async def first_packet(self, tap: str) -> AsyncIterator[FirstPacket]:
        """See `Host.first_packet`; raises `PreconditionFailed` without CAP_NET_RAW."""
        with await self._packets() as packets:
            yield FrameWatch(packets, tap, self.name)

    async def _packets(self) -> socket.socket:
        try:
            return await self.make_socket(socket.AF_PACKET, socket.SOCK_RAW)
        except PermissionError:
            raise PreconditionFailed(
                f"No right to watch packets on {self.name}.",
                hint="run as root, or with CAP_NET_RAW",
            ) from None

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        """See `Host.run`. When it is cancelled or late, the program and its children are killed.

        Late raises `DeadlineMissed`, a program that cannot be started `PreconditionFailed`.
        """
        try:
            program = await self._inside(
                lambda: launch.start_captured(argv, stdin), undo=self._discard
            )
        except OSError as error:
            raise _not_started(argv, self.name, error) from None
        try:
            async with asyncio.timeout(deadline_s):
                death = await program.process.wait()
            assert death.exit_code is not None, "a child of ours has an exit code"
            return Completed(death.exit_code, _text(program.stdout), _text(program.stderr))
        except TimeoutError:
            raise DeadlineMissed(
                f"`{' '.join(argv)}` did not end within {deadline_s:g} s and was killed."
            ) from None
        finally:
            try:
                await self._late.end(program.process)
            finally:
                program.close_files()

    @asynccontextmanager
    async def converse(self, argv: Sequence[str]) -> AsyncIterator[Conversation]:
        """See `Host.converse`; raises `PreconditionFailed` when it cannot be started."""
        try:
            program = await self._inside(lambda: launch.start_talking(argv), undo=self._discard)
        except OSError as error:
            raise _not_started(argv, self.name, error) from None
        try:
            async with conversing(program) as conversation:
                yield conversation
        finally:
            try:
                await self._late.end(program.process)
            finally:
                program.close_files()

    def _discard(self, program: StartedProgram) -> None:
        self._late.note(program.process, gone=program.discard())

    async def _inside(
        self, job: Callable[[], T], *, undo: Callable[[T], object] | None = None
    ) -> T:
        """Return the result of ``job``, done in the host's thread; once cancelled, ``undo`` gets
        it.
        """
        return await launch.claimed(self._inner.submit(job), undo)


def _not_started(argv: Sequence[str], host: str, error: OSError) -> PreconditionFailed:
    return PreconditionFailed(
        f"{argv[0]} could not be started on {host}: {error.strerror}.",
        hint=f"install the package that has {argv[0]}, or give its path",
    )


def _text(memfd: int) -> str:
    return os.pread(memfd, OUTPUT_LIMIT, 0).decode(errors="replace")

"""Define what a host offers to the layers above: processes, connections, taps and programs.

A host is where QEMU processes run: this machine (`local`), one of its network namespaces
(`netns:NAME`), or a machine at the other end of an ssh connection (`ssh://NAME`). `host.local`
implements `Host`; `host.records` has what it returns. Used by every layer above.

Invariant: no module above this package asks which kind of host it has. Every operation of a host
that cannot be reached raises `HostOutOfReach`, which is named here once for all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from coloctl.host.access import Access, Taps
from coloctl.host.delivery import Deliveries
from coloctl.host.files import Files
from coloctl.host.identity import Identity as Identity  # noqa: PLC0414 - part of this protocol
from coloctl.host.records import Completed as Completed  # noqa: PLC0414
from coloctl.host.records import Death as Death  # noqa: PLC0414
from coloctl.host.records import DeathProof as DeathProof  # noqa: PLC0414
from coloctl.host.records import Machine, Reach, Stray, ThreadTimes
from coloctl.host.watching import (
    Beacon,
    Channel,
    Conversation,
    FirstConnection,
    FirstPacket,
    Listener,
)
from coloctl.model.launch import Launch
from coloctl.model.observation import Life
from coloctl.model.wires import Address
from coloctl.model.wires import Endpoint as Endpoint  # noqa: PLC0414  # callers need both


class Process(Protocol):
    """A process on a host, started or adopted, and held so that its pid cannot mean another one."""

    @property
    def identity(self) -> Identity: ...

    @property
    def argv(self) -> tuple[str, ...]: ...

    @property
    def node(self) -> str: ...

    @property
    def leader(self) -> Identity:
        """The process that was launched; another one where a wrapper started this one."""
        return self.identity

    @property
    def unplaced(self) -> str:
        """The reason why it got no unit of systemd when it was launched; "" for none."""
        return ""

    async def answers(self, speaker: Identity, files: Collection[Path] = ()) -> None:
        """Hold the process that is the QEMU from now on: ``speaker``, or the one that has ``files``
        open.

        Raises `Unreachable` when ``speaker`` does not belong to what was launched.
        """
        return

    async def wait(self) -> Death:
        """Wait until the process is gone."""
        ...

    async def until_halted(self) -> Death:
        """Wait until the process can run no instruction any more; `life` is DEAD from then on.

        That is before it is gone where a signal ended it: the kernel closes its files, and frees
        its memory, which takes 100 ms and more for each GiB.
        """
        return await self.wait()

    def halted(self) -> bool:
        """Return whether it is known that the process can run no instruction any more.

        Cheap: at most one look at a descriptor.
        """
        return not self.alive()

    def life(self) -> Life:
        """Return the state of the process as its kernel reports it.

        DEAD is proven. UNKNOWN: its host has not reported for some beats.
        """
        ...

    def alive(self) -> bool:
        """Return whether it is not gone; a stopped process is alive, a zombie is not.

        Note the difference: `life` is DEAD of one that has come to a halt, and this is still True.
        """
        ...

    def dying(self) -> bool:
        """Return whether its end has begun, as far as its threads show it; no proof of its death.

        False once it is dead, and where nothing is known of it.
        """
        ...

    def cpu_s(self) -> float | None:
        """Return the CPU time that it has used so far, in seconds; None where that is unknown."""
        ...

    def watch(self, *, threads: Sequence[int] | None = None, console: Path | None = None) -> None:
        """Keep `worked` and `console_bytes` known from now on, for what is given.

        None leaves that as it is.
        """
        ...

    def worked(self) -> ThreadTimes | None:
        """Return the times of the threads that are watched, in their order, as last known.

        None where the kernel does not report them, or where a thread is gone.
        """
        ...

    def console_bytes(self) -> int:
        """Return the size of the console that is watched, as last known; 0 where there is none."""
        ...

    async def kill(self, deadline_s: float) -> DeathProof:
        """Kill the process and all that belongs to it, and return the kernel's proof that they are
        gone.

        Raises `FencingFailed` when no proof came within ``deadline_s``, and at once, with
        ``out_of_reach`` set, when its host cannot be asked.
        """
        ...

    async def halt(self, deadline_s: float) -> DeathProof:
        """Kill the process, and return the proof as soon as it can run no instruction any more.

        As `until_halted`; its files may be open for a moment. Raises as `kill`.
        """
        return await self.kill(deadline_s)

    async def terminate(self, deadline_s: float) -> DeathProof:
        """Ask the process to end, and kill it if it does not; proof and errors as `kill`."""
        ...

    def close(self) -> None:
        """Release the hold on the process; the process itself is left alone."""
        ...


class Host(Files, Access, Taps, Protocol):
    """A place where processes run. Every wait has a deadline; errors are those of `errors`."""

    @property
    def name(self) -> str: ...

    @property
    def machine(self) -> Machine:
        """The machine of this host, as it was last reached; raises `HostOutOfReach` before that.

        On this machine, raises `PreconditionFailed` for a folder that others can change.
        """
        ...

    @property
    def reach(self) -> Reach:
        """The state of the connection to the host just now."""
        ...

    async def ready(self, deadline_s: float) -> None:
        """Wait until the host can be asked; raises `HostOutOfReach` with the reason."""
        ...

    async def reached(self, than: Reach) -> Reach:
        """Wait until `reach` has another contact or session than ``than``, and return it."""
        ...

    async def launch(
        self,
        program: Launch,
        *,
        stderr: Path,
        node: str = "",
    ) -> Process:
        """Start the program detached in its own session, its output appended to ``stderr``.

        Its sockets (mode 0600) listen before it starts. Raises `LaunchError`, or
        `PreconditionFailed` for a socket or file that cannot be made.
        """
        ...

    async def adopt(
        self,
        identity: Identity,
        *,
        node: str = "",
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> Process | None:
        """Hold the very process of ``identity`` and what belongs to it; None: all of it is gone.

        ``leader`` is the process that was launched, where that is another one. ``sockets`` are the
        paths that it was given to listen at. None is a proof; a case of doubt raises
        `PreconditionFailed`.
        """
        ...

    def known(
        self,
        identity: Identity,
        *,
        node: str,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> Process:
        """Hold the process of ``identity`` without asking its host: it is looked for later.

        For a host out of reach; the arguments are those of `adopt`. Raises `PreconditionFailed` in
        a case of doubt, where the host could be asked at once.
        """
        ...

    async def kill(
        self,
        identity: Identity,
        *,
        node: str,
        deadline_s: float,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> DeathProof:
        """Kill the process of ``identity`` and what belongs to it; raises `FencingFailed`."""
        ...

    async def holders(self, sockets: Collection[Path]) -> Mapping[Path, tuple[Stray, ...]]:
        """Find the processes of this user that hold a listening socket at each of ``sockets``.

        Of one session only its leader is returned. A path without a holder is left out.
        """
        ...

    async def still_held(
        self, *, images: Collection[Path], taps: Collection[str], besides: Identity | None = None
    ) -> tuple[str, ...]:
        """Find the processes that may still write to ``images`` or have ``taps`` open: a sentence
        for each.

        Not for what the process ``besides`` has open: it has come to a halt. An image or tap that
        cannot be asked about is left out.
        """
        return ()

    async def speaker(self, monitor: socket.socket, deadline_s: float) -> Identity:
        """Find the process that greets at a stream that `monitor` has just connected.

        The kernel names it, and no byte is read. Raises `Unreachable`.
        """
        ...

    async def monitor(self, path: Path, deadline_s: float) -> socket.socket:
        """Connect a stream to the unix socket at ``path``; raises `Unreachable`."""
        ...

    async def listen(self, at: Endpoint) -> Listener:
        """Listen at ``at``, or at a free port of that address where its port is 0.

        Raises `PreconditionFailed` when it is not available.
        """
        ...

    async def connect(self, to: Endpoint, *, nodelay: bool, deadline_s: float) -> Channel:
        """Connect a TCP stream to ``to``; raises `Unreachable`."""
        ...

    async def unix_channels(self) -> tuple[Channel, Channel]:
        """Make both ends of a unix stream, for two QEMUs on this machine."""
        ...

    async def hear(self, at: Address, length: int, *, deadline_s: float) -> bytes:
        """Read the first ``length`` bytes that the server at ``at`` sends unasked.

        Returns fewer when it closes the connection before. Raises `Unreachable`.
        """
        ...

    async def beacon(self, at: Endpoint, peer: Endpoint, key: bytes, beat_ms: int) -> Beacon:
        """Make a beacon at ``at`` on this host, for one at ``peer`` that has the same ``key``.

        Where another program holds it, that one calls `Beacon.beat` every ``beat_ms``. Raises
        `PreconditionFailed`.
        """
        ...

    async def deliveries(self, at: str, peer: str, ports: Collection[int]) -> Deliveries | None:
        """Watch the connections between both addresses with one of ``ports``.

        Returns None where the kernel does not report them.
        """
        ...

    async def image_user(self, image: Path) -> str | None:
        """Find the program that uses a disk image, by QEMU's locks; None: none. See
        `locks.user_of`.
        """
        ...

    async def ports_in_use(self, address: str) -> set[int]:
        """Find TCP ports at which a listener on ``address`` would collide, without connecting."""
        ...

    def first_connection(self, tap: str) -> AbstractAsyncContextManager[FirstConnection]:
        """Watch for the first TCP connection over ``tap`` while the context is open."""
        ...

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        """Run the program until it has read ``stdin`` and ended by itself.

        Raises `DeadlineMissed` after killing it, and `PreconditionFailed` where there is no such
        program.
        """
        ...

    def converse(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Conversation]:
        """Run the program while the context is open, and kill it with its children at the end.

        Raises `PreconditionFailed` where there is no such program.
        """
        ...

    def first_packet(self, tap: str) -> AbstractAsyncContextManager[FirstPacket]:
        """Watch for the first frame that the guest sends over ``tap`` while the context is open.

        Raises `PreconditionFailed` where packets may not be watched.
        """
        ...

    async def aclose(self) -> None:
        """Release what the host object holds; processes stay."""
        ...

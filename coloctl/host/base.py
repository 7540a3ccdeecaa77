"""What a host offers to the layers above: operations, and the records that they answer with.

A host is where QEMU processes run: this machine (`local`), one of its network namespaces
(`netns:NAME`), and one day a machine at the other end of a connection. Nothing above this package
asks which.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from coloctl.host.access import Access
from coloctl.host.delivery import Deliveries
from coloctl.host.files import Files
from coloctl.host.identity import Identity as Identity  # noqa: PLC0414 - part of this protocol
from coloctl.host.watching import Beacon, Conversation, FirstConnection, FirstPacket
from coloctl.model.wires import Address
from coloctl.model.wires import Endpoint as Endpoint  # noqa: PLC0414  # callers need both


@dataclass(frozen=True)
class Death:
    """A process is gone. ``exit_code`` is known for our own children only; -N means signal N.

    ``at_s`` is the monotonic second at which it was noticed.
    """

    pid: int
    at_s: float
    exit_code: int | None

    def __str__(self) -> str:
        if self.exit_code is None:
            return f"process {self.pid} is gone"
        if self.exit_code >= 0:
            return f"process {self.pid} ended with exit code {self.exit_code}"
        try:
            name = signal.Signals(-self.exit_code).name
        except ValueError:
            name = f"signal {-self.exit_code}"
        return f"process {self.pid} was killed by {name}"


@dataclass(frozen=True)
class DeathProof:
    """What a fence answers: this very process can never run another instruction.

    ``how`` is one of ``sigterm``, ``sigkill`` (our signal, then the kernel said that it is gone),
    ``already-dead`` (gone before any signal) and ``identity-gone`` (no process has that pid and
    start time). ``at_s`` is the monotonic second of the proof.
    """

    pid: int
    start_time: int
    how: str
    at_s: float
    exit_code: int | None


@dataclass(frozen=True)
class Completed:
    """How a short program ended; ``code`` is negative when a signal ended it."""

    code: int
    stdout: str
    stderr: str


class Channel:
    """One end of a connected stream, in blocking mode, ready to be handed to a QEMU."""

    def __init__(self, sock: socket.socket, description: str) -> None:
        self.socket = sock
        self.description = description

    def fileno(self) -> int:
        """The file descriptor, -1 once closed."""
        return self.socket.fileno()

    def close(self) -> None:
        """Our copy of this end is closed; one that a QEMU holds stays open."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Channel {self.description}>"


class Process(Protocol):
    """A process on a host, started or adopted, held so that its pid cannot lie."""

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

    async def answers(self, speaker: Identity, files: Collection[Path] = ()) -> None:
        """Hold the process that is the QEMU from now on: ``speaker``, or who has ``files`` open.

        Raises `Unreachable` when ``speaker`` does not belong to what was launched.
        """
        return

    async def wait(self) -> Death:
        """The process is gone."""
        ...

    def alive(self) -> bool:
        """Whether it still exists; a stopped process does, a zombie does not."""
        ...

    def frozen(self) -> bool:
        """Whether it exists and is stopped (SIGSTOP)."""
        ...

    def cpu_s(self) -> float | None:
        """CPU time that it has used so far, seconds; None when that cannot be told."""
        ...

    def signal(self, signum: int) -> bool:
        """The signal was sent to this process, or False: it was gone already."""
        ...

    async def kill(self, deadline_s: float) -> DeathProof:
        """Kill the process, and all that belongs to it; the kernel says that they are gone.

        Raises `FencingFailed` when no proof came within ``deadline_s``.
        """
        ...

    async def terminate(self, deadline_s: float) -> DeathProof:
        """The process was asked to end, and killed if it did not; proof and errors as `kill`."""
        ...

    def close(self) -> None:
        """Our hold on the process is released; the process itself is left alone."""
        ...


class Host(Files, Access, Protocol):
    """Where processes run. Every wait has a deadline; errors are those of `coloctl.errors`."""

    @property
    def name(self) -> str: ...

    async def launch(
        self,
        argv: Sequence[str],
        *,
        stderr: Path,
        listen: Mapping[str, Path] | None = None,
        node: str = "",
        numbered: Collection[int] | None = None,
    ) -> Process:
        """Start the program detached in its own session, its output appended to ``stderr``.

        For every item of ``listen`` a unix socket (mode 0600) listens before the program starts,
        and ``{fd:NAME}`` in the words of ``argv`` at ``numbered``, or in all of them, is replaced
        by the number of its descriptor.
        Raises `LaunchError`, or `PreconditionFailed` for a socket or file that cannot be made.
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

        ``leader`` is the process that was launched, where that is another one, and ``sockets`` are
        the paths that it was given to listen at. None is a proof; what leaves a doubt raises
        `PreconditionFailed`.
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

    async def still_held(
        self, *, images: Collection[Path], taps: Collection[str]
    ) -> tuple[str, ...]:
        """Say who may still write to ``images`` or has ``taps`` open: a sentence for each.

        What cannot be asked is left out.
        """
        return ()

    async def speaker(self, monitor: socket.socket, deadline_s: float) -> Identity:
        """Tell which process greets at a stream that `monitor` has just connected.

        The kernel says so, and nothing is read. Raises `Unreachable`.
        """
        ...

    async def monitor(self, path: Path, deadline_s: float) -> socket.socket:
        """A connected stream to the unix socket at ``path``; raises `Unreachable`."""
        ...

    async def channel_pair(
        self, other: Host, listen: Endpoint, *, nodelay: bool, deadline_s: float
    ) -> tuple[Channel, Channel]:
        """Both ends of a TCP connection: the first at ``listen`` here, the second on ``other``.

        Raises `PreconditionFailed` when ``listen`` cannot be had, `Unreachable` when ``other``
        does not get through within ``deadline_s``.
        """
        ...

    async def carries(self, other: Host, listen: Endpoint, *, deadline_s: float) -> None:
        """TCP to ``listen`` here from ``other`` carries data both ways; nobody listens there.

        Raises as `channel_pair` does; nobody listens there afterwards either.
        """
        ...

    async def hear(self, at: Address, length: int, *, deadline_s: float) -> bytes:
        """Read the first ``length`` bytes that the server at ``at`` says by itself, fewer when
        it hangs up before. Raises `Unreachable`."""
        ...

    async def beacon(self, at: Endpoint, peer: Endpoint, key: bytes) -> Beacon:
        """Make a beacon at ``at`` on this host, for one at ``peer`` that has the same ``key``.

        Raises `PreconditionFailed`.
        """
        ...

    async def deliveries(self, at: str, peer: str, ports: Collection[int]) -> Deliveries | None:
        """The connections between both addresses with one of ``ports``; None: the kernel does not
        tell."""
        ...

    async def tap(self, name: str, *, up: bool) -> None:
        """The tap's administrative state is ``up``: down, no frame crosses it. A network fence."""
        ...

    async def tap_exists(self, name: str) -> bool:
        """Whether this host has a tap of that name."""
        ...

    async def tap_held(self, name: str) -> bool:
        """Whether another process has the tap open; where that cannot be told, it is."""
        ...

    async def tap_is_up(self, name: str) -> bool | None:
        """The tap's administrative state; None where there is no such device."""
        ...

    async def image_user(self, image: Path) -> str | None:
        """The program that uses a disk image, by QEMU's locks; None: none. As `locks.user_of`."""
        ...

    async def check_tap(self, name: str) -> None:
        """A QEMU started now could open the tap; raises `PreconditionFailed` saying why not."""
        ...

    async def ports_in_use(self, address: str) -> set[int]:
        """TCP ports at which a listener on ``address`` would collide; looks without connecting."""
        ...

    def first_connection(self, tap: str) -> AbstractAsyncContextManager[FirstConnection]:
        """While the context is open, the first TCP connection over ``tap`` is watched for."""
        ...

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        """The program has read ``stdin`` and ended by itself. Raises `DeadlineMissed` after
        killing it, and `PreconditionFailed` where there is no such program."""
        ...

    def converse(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Conversation]:
        """The program runs while the context is open, and is killed with its children at its end.

        Raises `PreconditionFailed` where there is no such program.
        """
        ...

    def first_packet(self, tap: str) -> AbstractAsyncContextManager[FirstPacket]:
        """While the context is open, the first frame that the guest sends over ``tap`` is watched
        for. Raises `PreconditionFailed` where packets may not be watched."""
        ...

    async def aclose(self) -> None:
        """What the host object holds is released; processes stay."""
        ...

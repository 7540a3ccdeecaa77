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

from coloctl.host.delivery import Deliveries
from coloctl.host.files import Files
from coloctl.host.identity import Identity as Identity  # noqa: PLC0414 - part of this protocol


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


@dataclass(frozen=True)
class Endpoint:
    """An IP address and a TCP port; port 0 lets the kernel choose."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


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


class Beacon(Protocol):
    """One end of the replication link: sends a numbered datagram at every beat, hears the peer's.

    Holds no task and never waits. What other sessions send, an earlier supervisor's say, is not
    heard.
    """

    session: bytes  #: drawn anew for every beacon
    delay_s: float | None  #: how long the datagram heard last was on its way, by the wall clock
    lost: int  #: datagrams of the peer that were passed over by a later one

    def meet(self, peer: Beacon) -> None:
        """Only ``peer`` is heard from now on."""
        ...

    def beat(self) -> bool:
        """One datagram was sent if the network took it; answers whether both directions carry.

        That is: since the last beat the peer was heard, and it has heard more of us than before.
        """
        ...

    def close(self) -> None:
        """The port is free."""
        ...


class FirstConnection(Protocol):
    """A watch for the first TCP connection over a tap, begun when the context was entered."""

    async def wait(self) -> None:
        """The guest has sent a TCP segment with SYN since the watch began: it connects or accepts.

        May be cancelled and called again: nothing is missed in between.
        """
        ...


class FirstPacket(Protocol):
    """A watch for the first frame that a guest sends, begun when the context was entered."""

    async def wait(self) -> None:
        """A frame of the guest has crossed the tap; may be cancelled and called again."""
        ...


class Process(Protocol):
    """A process on a host, started or adopted, held so that its pid cannot lie."""

    @property
    def identity(self) -> Identity: ...

    @property
    def argv(self) -> tuple[str, ...]: ...

    @property
    def node(self) -> str: ...

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
        """The process was killed and the kernel says that it is gone.

        Raises `FencingFailed` when no proof came within ``deadline_s``.
        """
        ...

    async def terminate(self, deadline_s: float) -> DeathProof:
        """The process was asked to end, and killed if it did not; proof and errors as `kill`."""
        ...

    def close(self) -> None:
        """Our hold on the process is released; the process itself is left alone."""
        ...


class Conversation(Protocol):
    """A program that runs on a host, with lines of text going both ways."""

    async def say(self, line: str, deadline_s: float) -> None:
        """The line is on its way; one that is not read keeps its sender waiting.

        Raises `DeadlineMissed`, and `Unreachable` when the program has ended or does not listen.
        """
        ...

    async def hear(self, deadline_s: float) -> str | None:
        """The next line that it says, or None: it has ended. Raises `DeadlineMissed`.

        May be cancelled: no line is lost.
        """
        ...

    def last_words(self) -> str:
        """What it wrote to stderr so far."""
        ...


class Host(Files, Protocol):
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
    ) -> Process:
        """The program runs detached in its own session, its output appended to ``stderr``.

        For every item of ``listen`` a unix socket (mode 0600) listens before the program starts,
        and ``{fd:NAME}`` in ``argv`` is replaced by the number of its descriptor.
        Raises `LaunchError`, or `PreconditionFailed` for a socket or file that cannot be made.
        """
        ...

    async def adopt(self, identity: Identity, *, node: str = "") -> Process | None:
        """The very process of ``identity``, or None: it is gone, whoever has its pid now.

        None is a proof; what leaves a doubt raises `PreconditionFailed`.
        """
        ...

    async def kill(self, identity: Identity, *, node: str, deadline_s: float) -> DeathProof:
        """The process of ``identity`` is gone, killed if need be; raises `FencingFailed`."""
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

    async def hear(self, endpoint: Endpoint, length: int, *, deadline_s: float) -> bytes:
        """The first ``length`` bytes that the TCP server at ``endpoint`` says by itself, fewer when
        it hangs up before. Raises `Unreachable`."""
        ...

    async def beacon(self, at: Endpoint, peer: Endpoint) -> Beacon:
        """A beacon at ``at`` on this host, for one at ``peer``; raises `PreconditionFailed`."""
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

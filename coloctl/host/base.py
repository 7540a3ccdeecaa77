"""Define what a host offers to the layers above: operations, and the records that they return.

A host is where QEMU processes run: this machine (`local`) or one of its network namespaces
(`netns:NAME`); a machine at the other end of a connection may come. `host.local` implements `Host`.
Used by every layer above.

Invariant: no module above this package asks which kind of host it has.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from coloctl.host.access import Access
from coloctl.host.delivery import Deliveries
from coloctl.host.files import Files
from coloctl.host.identity import Identity as Identity  # noqa: PLC0414 - part of this protocol
from coloctl.host.watching import Beacon, Conversation, FirstConnection, FirstPacket
from coloctl.model.launch import Launch
from coloctl.model.wires import Address
from coloctl.model.wires import Endpoint as Endpoint  # noqa: PLC0414  # callers need both


@dataclass(frozen=True)
class Death:
    """The end of a process, as it was noticed at the monotonic second ``at_s``.

    ``exit_code`` is known for coloctl's own children only; -N means signal N.

    Note the difference: a `Death` is what was noticed; a `DeathProof` is what a fence may rest on.
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
    """The result of a fence: this very process can never run another instruction.

    ``how`` is one of ``sigterm`` and ``sigkill`` (coloctl's signal, then the kernel reported the
    end), ``already-dead`` (gone before any signal) and ``identity-gone`` (no process has that pid
    and start time). ``at_s`` is the monotonic second of the proof.
    """

    pid: int
    start_time: int
    how: str
    at_s: float
    exit_code: int | None


@dataclass(frozen=True)
class Completed:
    """The end of a short program; ``code`` is negative when a signal ended it."""

    code: int
    stdout: str
    stderr: str


class Channel:
    """One end of a connected stream, in blocking mode, ready to be handed to a QEMU."""

    def __init__(self, sock: socket.socket, description: str) -> None:
        self.socket = sock
        self.description = description

    def fileno(self) -> int:
        """Return the file descriptor, -1 once closed."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close this process's copy of the end; a copy that a QEMU holds stays open."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Channel {self.description}>"


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

    async def answers(self, speaker: Identity, files: Collection[Path] = ()) -> None:
        """Hold the process that is the QEMU from now on: ``speaker``, or the one that has ``files``
        open.

        Raises `Unreachable` when ``speaker`` does not belong to what was launched.
        """
        return

    async def wait(self) -> Death:
        """Wait until the process is gone."""
        ...

    def alive(self) -> bool:
        """Return whether it still exists; a stopped process does, a zombie does not."""
        ...

    def frozen(self) -> bool:
        """Return whether it exists and is stopped (SIGSTOP)."""
        ...

    def cpu_s(self) -> float | None:
        """Return the CPU time that it has used so far, in seconds; None where that is unknown."""
        ...

    def signal(self, signum: int) -> bool:
        """Send the signal to this process; returns False where it was gone already."""
        ...

    async def kill(self, deadline_s: float) -> DeathProof:
        """Kill the process and all that belongs to it, and return the kernel's proof that they are
        gone.

        Raises `FencingFailed` when no proof came within ``deadline_s``.
        """
        ...

    async def terminate(self, deadline_s: float) -> DeathProof:
        """Ask the process to end, and kill it if it does not; proof and errors as `kill`."""
        ...

    def close(self) -> None:
        """Release the hold on the process; the process itself is left alone."""
        ...


class Host(Files, Access, Protocol):
    """A place where processes run. Every wait has a deadline; errors are those of `errors`."""

    @property
    def name(self) -> str: ...

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
        """Find the processes that may still write to ``images`` or have ``taps`` open: a sentence
        for each.

        An image or tap that cannot be asked about is left out.
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

    async def channel_pair(
        self, other: Host, listen: Endpoint, *, nodelay: bool, deadline_s: float
    ) -> tuple[Channel, Channel]:
        """Connect both ends of a TCP connection: the first at ``listen`` here, the second on
        ``other``.

        Raises `PreconditionFailed` when ``listen`` is not available, and `Unreachable` when
        ``other`` does not get through within ``deadline_s``.
        """
        ...

    async def carries(self, other: Host, listen: Endpoint, *, deadline_s: float) -> None:
        """Check that TCP from ``other`` to ``listen`` here carries data both ways.

        No process may listen there before, and none does afterwards. Raises as `channel_pair` does.
        """
        ...

    async def hear(self, at: Address, length: int, *, deadline_s: float) -> bytes:
        """Read the first ``length`` bytes that the server at ``at`` sends unasked.

        Returns fewer when it closes the connection before. Raises `Unreachable`.
        """
        ...

    async def beacon(self, at: Endpoint, peer: Endpoint, key: bytes) -> Beacon:
        """Make a beacon at ``at`` on this host, for one at ``peer`` that has the same ``key``.

        Raises `PreconditionFailed`.
        """
        ...

    async def deliveries(self, at: str, peer: str, ports: Collection[int]) -> Deliveries | None:
        """Watch the connections between both addresses with one of ``ports``.

        Returns None where the kernel does not report them.
        """
        ...

    async def tap(self, name: str, *, up: bool) -> None:
        """Set the tap's administrative state: a tap that is down lets no frame cross. A network
        fence.
        """
        ...

    async def tap_held(self, name: str) -> bool:
        """Return whether another process has the tap open; where that is unknown, True."""
        ...

    async def tap_is_up(self, name: str) -> bool | None:
        """Return the tap's administrative state; None where there is no such device."""
        ...

    async def image_user(self, image: Path) -> str | None:
        """Find the program that uses a disk image, by QEMU's locks; None: none. See
        `locks.user_of`.
        """
        ...

    async def check_tap(self, name: str) -> None:
        """Check that a QEMU started now could open the tap; raises `PreconditionFailed` with the
        reason.
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

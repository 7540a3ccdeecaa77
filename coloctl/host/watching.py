"""Define what is open on a host: connections, memory, watches and conversations.

`host.base` and `host.files` return these from `Host`. `host.channel`, `host.scratch`,
`host.beacon`, `host.packet` and `host.converse` implement them for this machine, and
`host.remote.watches` for another one. Invariant: no `close` waits or raises, and each may be called
again.
"""

from __future__ import annotations

from typing import Protocol, Self

from coloctl.model.wires import Endpoint


class Channel(Protocol):
    """One end of a connected stream, ready to be handed to a QEMU on its host."""

    description: str
    local: Endpoint | None  #: this end; None: it has no address

    def fileno(self) -> int:
        """Return the descriptor that a monitor of that host passes to its QEMU, -1 once closed."""
        ...

    async def send(self, data: bytes, deadline_s: float) -> None:
        """Send all of ``data``; raises `Unreachable`."""
        ...

    async def receive(self, length: int, deadline_s: float) -> bytes:
        """Receive ``length`` bytes, or fewer where the other end closes; raises `Unreachable`."""
        ...

    def close(self) -> None:
        """Close this copy of the end; a copy that a QEMU holds stays open."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Listener(Protocol):
    """A TCP port that listens on a host."""

    at: Endpoint  #: with its real port, never 0

    async def accept(self, peer: Endpoint, *, nodelay: bool, deadline_s: float) -> Channel:
        """Accept the connection that comes from ``peer``, and close those of strangers.

        Raises `Unreachable`.
        """
        ...

    def close(self) -> None:
        """Stop listening; connections that were accepted stay."""
        ...


class Scratch(Protocol):
    """Memory on a host that a QEMU there writes into, and that is digested there page by page."""

    def fileno(self) -> int:
        """Return the descriptor that a monitor of that host passes to its QEMU."""
        ...

    async def digests(self, length: int, page: int, key: bytes) -> bytes:
        """Digest each page of the first ``length`` bytes, one digest after the other.

        Raises `PreconditionFailed` where fewer bytes were written.
        """
        ...

    def close(self) -> None:
        """Empty and close the memory; a copy that QEMU still holds is empty too."""
        ...


class Beacon(Protocol):
    """One end of the replication link: sends a numbered datagram at every beat, receives the
    peer's.

    Holds no task and never waits. Datagrams of other sessions, of an earlier supervisor for
    example, are ignored.
    """

    session: bytes  #: drawn for each beacon
    delay_s: float | None  #: half of the last round trip, each time by the clock of its own machine
    lost: int  #: datagrams of the peer that were passed over by a later one
    #: How often the peer's kernel answered that no program has the port: the link carried that.
    refused: int
    #: For how long the link had carried nothing when the holder of this end reported last, by the
    #: holder's clock, milliseconds; None: `beat` itself looks. A report that is late on its way
    #: is no silence of the link.
    reported_ms: float | None

    def meet(self, session: bytes) -> None:
        """Accept only the datagrams of the beacon with that ``session`` from now on."""
        ...

    def beat(self) -> bool | None:
        """Send one datagram, if the network takes it; returns whether both directions carry.

        That is: since the last beat a datagram of the peer came in, and it has received more of
        ours than before. None where that is unknown: the program that holds this end is out of
        reach.
        """
        ...

    def close(self) -> None:
        """Close the socket; its port is free then."""
        ...


class FirstConnection(Protocol):
    """A watch for the first TCP connection over a tap, begun when the context was entered."""

    async def wait(self) -> None:
        """Wait until the guest sends a TCP segment with SYN: it connects or accepts.

        Segments count since the watch began. May be cancelled and called again: none is missed in
        between.
        """
        ...


class FirstPacket(Protocol):
    """A watch for the first frame that a guest sends, begun when the context was entered."""

    async def wait(self) -> None:
        """Wait until the guest has sent a frame over the tap; may be cancelled and called again."""
        ...


class Conversation(Protocol):
    """A program that runs on a host, with lines of text going both ways."""

    async def say(self, line: str, deadline_s: float) -> None:
        """Send the line; one that is not read keeps its sender waiting.

        Raises `DeadlineMissed`, and `Unreachable` when the program has ended or does not listen.
        """
        ...

    async def hear(self, deadline_s: float) -> str | None:
        """Receive the next line of the program, or None: it has ended. Raises `DeadlineMissed`.

        May be cancelled: no line is lost.
        """
        ...

    def last_words(self) -> str:
        """Return what it wrote to stderr so far."""
        ...

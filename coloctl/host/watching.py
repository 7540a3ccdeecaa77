"""Define what a host watches, or exchanges text with, for as long as an object is open.

`host.base` returns these from `Host`; `host.beacon`, `host.packet` and `host.converse` implement
them.
"""

from __future__ import annotations

from typing import Protocol


class Beacon(Protocol):
    """One end of the replication link: sends a numbered datagram at every beat, receives the
    peer's.

    Holds no task and never waits. Datagrams of other sessions, of an earlier supervisor for
    example, are ignored.
    """

    session: bytes  #: drawn for each beacon
    delay_s: float | None  #: how long the datagram heard last was on its way, by the wall clock
    lost: int  #: datagrams of the peer that were passed over by a later one

    def meet(self, peer: Beacon) -> None:
        """Accept datagrams of ``peer`` only from now on."""
        ...

    def beat(self) -> bool:
        """Send one datagram, if the network takes it; returns whether both directions carry.

        That is: since the last beat a datagram of the peer came in, and it has received more of
        ours than before.
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

"""Protocols of what a host watches or talks to for as long as an object is open.

`Host` answers with them; `beacon`, `packet` and `converse` implement them.
"""

from __future__ import annotations

from typing import Protocol


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

"""Carry requests, pushes, beats and byte streams over one connection; both ends use the same class.

Called by `host.agent.session` and at the other end by `host.remote.contact`, which connect, and
decide when a connection is lost. Orders what it sends by `host.wire.lanes` and keeps it in
`host.wire.resend`; `host.wire.requests` and `host.wire.stream` do the rest.

Invariant: a session outlives its connections. `carry` serves one of them until it ends. On the next
one each counted frame that had not arrived is sent again, unless `forget` was called between, which
begins a new session. Each request is performed once at most, and its answer arrives once at most.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from coloctl.host.wire.frames import (
    PIECE,
    UNCOUNTED,
    Frame,
    FrameError,
    FrameKind,
    FrameSplitter,
    Joiner,
    decode_json,
    encode_json,
)
from coloctl.host.wire.lanes import Lanes
from coloctl.host.wire.requests import Asks, Serve, Served, Unclaimed
from coloctl.host.wire.resend import Unacknowledged
from coloctl.host.wire.stream import WireStream
from coloctl.tasks import first_of

#: How much longer than its deadline an ask waits for the answer, without the time on the wire.
GRACE_S = 1.0
#: After so many counted frames an acknowledgement goes out, also where no beat does.
ACKNOWLEDGE_EVERY = 64
#: A session of which more than this waits to be sent is given up, bytes; streams wait themselves.
WAITING_MAX = 64 << 20
#: So many streams of the peer are remembered until this end attaches to them.
UNATTACHED_MAX = 1024
_NUMBERS = 1 << 32


def _numbers(odd: bool) -> Iterator[int]:
    """Number what one end opens; the other end's numbers are not among them."""
    return (number % _NUMBERS for number in itertools.count(1 if odd else 2, 2))


class Mux:
    """One end of a session: asks and answers, pushes, beats, streams.

    ``serve`` performs what the peer asks. An error that it raises is raised there; it is cancelled
    when the peer's ask was cancelled or is late. ``pushed`` and ``beaten`` get what the peer pushes
    and beats; they return at once and do not raise. ``unclaimed`` gets the answer to an ask of ours
    that was cancelled or late when the answer came: it undoes what the answer stands for. The end
    that dials is ``odd``. ``peer`` names the other end in sentences.
    """

    def __init__(
        self,
        serve: Serve,
        pushed: Callable[[str, Mapping[str, Any]], None],
        *,
        odd: bool,
        beaten: Callable[[Mapping[str, Any]], None] = lambda document: None,
        unclaimed: Unclaimed = lambda do, answer: None,
        peer: str = "the other end",
    ) -> None:
        self._serve, self._pushed, self._beaten = serve, pushed, beaten
        self._unclaimed, self._peer = unclaimed, peer
        #: The name of the session in HELLO: the end that is dialled makes one, the other end takes
        #: it over, and `forget` empties it. Only sessions of one name resume.
        self.session = ""
        #: How much longer than its deadline an ask waits: `GRACE_S`, and the round trip.
        self.grace_s = GRACE_S
        #: The monotonic second at which bytes came last.
        self.arrived_s = time.monotonic()
        self._odd = odd
        self._requests, self._numbers = _numbers(odd), _numbers(odd)
        self._beats = _numbers(odd)
        self._ending: set[asyncio.Task[bytes]] = set()  #: what was served for forgotten sessions
        self._over: asyncio.Future[str] | None = None  #: ends the connection that is carried
        self._wake = asyncio.Event()
        self._begin()

    def _begin(self) -> None:
        #: The number of counted frames that came in this session, for HELLO.
        self.received = 0
        self._farewell: Mapping[str, Any] | None = None
        self._acknowledged = 0
        self._beat_sent = False
        self._lanes, self._kept, self._joiner = Lanes(), Unacknowledged(), Joiner()
        self._asks = Asks(
            self._peer, self._requests, self._send, self._lanes.withdraw, self._unclaimed
        )
        self._served = Served(self._serve, self._send)
        self._streams: dict[int, WireStream] = {}
        self._unattached: OrderedDict[int, WireStream] = OrderedDict()
        self._resetting: set[int] = set()  #: streams whose RESET the peer has not answered yet

    # -- a connection

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, confirmed: int = 0
    ) -> str:
        """Serve this connection until it ends, after both HELLOs; return why it ended, a sentence.

        ``confirmed`` is what the peer's HELLO gives as ``received``, 0 in a new session. The
        session itself stays as it is: `carry` again to resume it, or `forget`. A connection on
        which nonsense comes ends its session as well. The caller closes ``writer``.
        """
        writer.transport.set_write_buffer_limits(high=PIECE)
        self._joiner.drop_uncounted()
        self._lanes.drop_beats()
        over = self._over = asyncio.get_running_loop().create_future()
        try:
            self._kept.acknowledge(confirmed)
            async with first_of(over, self._read(reader, over), self._write(writer, over)) as waits:
                why: str = next(wait.result() for wait in waits if wait.done())
                return why
        except OSError as error:
            return f"The connection to {self._peer} broke: {error.strerror or error}."
        except FrameError as error:
            self.forget(str(error))
            return str(error)
        finally:
            self._over = None

    def resumable(self, confirmed: int) -> bool:
        """Return whether a peer that received so many frames can get all the others."""
        return self._kept.reaches(confirmed)

    async def _read(self, reader: asyncio.StreamReader, over: asyncio.Future[str]) -> str:
        splitter = FrameSplitter()
        while data := await reader.read(1 << 16):
            self.arrived_s = time.monotonic()
            for frame in splitter.feed(data):
                self._receive(frame)
                if over.done():  # the rest belongs to a session that was forgotten
                    return over.result()
                if self._farewell is not None:
                    return f"The session was ended by {self._peer}."
        return f"The connection was closed by {self._peer}."

    async def _write(self, writer: asyncio.StreamWriter, over: asyncio.Future[str]) -> str:
        kept = deque(self._kept.rest())
        while not over.done():  # what waits after that belongs to the next session
            batch = bytearray()
            while kept and len(batch) < PIECE:
                batch += kept.popleft()
            while len(batch) < PIECE and (raw := self._next()):
                batch += raw
            if batch:
                writer.write(batch)
                await writer.drain()
            else:
                self._wake.clear()
                await self._wake.wait()
        return over.result()

    def _next(self) -> bytes:
        """Take the next frame as it travels; b"" where none may be sent now."""
        if self._beat_sent or self.received - self._acknowledged >= ACKNOWLEDGE_EVERY:
            self._beat_sent = False
            if self.received > self._acknowledged:
                self._acknowledged = self.received
                return Frame(FrameKind.ACK, 0, self.received.to_bytes(8, "big")).encode()
        frame = self._lanes.next(counted=not self._kept.full)
        if frame is None:
            return b""
        raw = frame.encode()
        if frame.kind in UNCOUNTED:
            self._beat_sent = not frame.more
        else:
            self._kept.add(raw)
        if frame.kind is FrameKind.ASK:
            self._asks.note_sent(frame.number)
        return raw

    def _send(self, kind: FrameKind, number: int, message: bytes) -> None:
        if self._lanes.waiting > WAITING_MAX:
            self.forget(f"More than {WAITING_MAX >> 20} MiB wait to be sent to {self._peer}.")
            return
        self._lanes.put(kind, number, message)
        self._wake.set()

    # -- what comes

    def _receive(self, frame: Frame) -> None:
        if frame.kind is FrameKind.ACK:
            self._kept.acknowledge(int.from_bytes(frame.payload, "big"))
            self._wake.set()
            return
        if frame.kind not in UNCOUNTED:
            self.received += 1
            if self.received - self._acknowledged >= ACKNOWLEDGE_EVERY:
                self._wake.set()
        if FrameKind.DATA <= frame.kind <= FrameKind.HOLD:
            self._receive_of_stream(frame)
        elif (message := self._joiner.add(frame)) is not None:
            self._receive_message(frame.kind, frame.number, message)

    def _receive_message(self, kind: FrameKind, number: int, message: bytes) -> None:
        if kind is FrameKind.CANCEL:
            self._served.cancel(number)
        elif kind is FrameKind.ASK:
            self._served.receive(number, message)
        else:
            self._receive_document(kind, number, decode_json(message))

    def _receive_document(self, kind: FrameKind, number: int, document: Mapping[str, Any]) -> None:
        if kind is FrameKind.BEAT:
            self._beaten(document)
        elif kind is FrameKind.PUSH:
            self._pushed(str(document.get("of")), document)
        elif kind is FrameKind.ANSWER:
            self._asks.receive(number, document)
        elif kind is FrameKind.BYE:
            self._farewell = document
        else:
            raise FrameError(f"A frame {kind.name} of number {number} came out of place.")

    def _receive_of_stream(self, frame: Frame) -> None:
        number, stream = frame.number, self._streams.get(frame.number)
        if frame.kind is FrameKind.RESET:
            if number in self._resetting:
                self._resetting.discard(number)
                return
            (stream or self._meet_stream(number)).lose(frame.payload.decode(errors="replace"))
            self._drop_stream(number)
            self._send(FrameKind.RESET, number, b"")
        elif number in self._resetting or (stream is None and frame.kind is FrameKind.CREDIT):
            return  # it was sent before the peer knew that the stream is over
        elif stream is not None:
            stream.receive(frame)
        elif number % 2 == self._odd:
            self._reset(number)
            self._send(FrameKind.RESET, number, b"This stream is over.")
        else:
            self._meet_stream(number).receive(frame)

    async def ask(self, do: str, arguments: Mapping[str, Any], deadline_s: float) -> Any:
        """Ask the peer to perform ``do``, and return its answer.

        The peer keeps ``deadline_s``; the answer is awaited `grace_s` longer. Raises what the peer
        raised, and `HostOutOfReach` where no answer came or the session was forgotten. Its ``sent``
        is False where the request never left.
        """
        return await self._asks.ask(do, arguments, deadline_s, deadline_s + self.grace_s)

    # -- what is sent

    def push(self, of: str, document: Mapping[str, Any]) -> None:
        """Send what must arrive, once and in order, as soon as a connection allows."""
        self._send(FrameKind.PUSH, 0, encode_json({**document, "of": of}))

    def beat(self, document: Mapping[str, Any]) -> None:
        """Send the newest beat; one that still waits is replaced, and none is sent twice."""
        self._lanes.put_beat(next(self._beats), encode_json(document))
        self._wake.set()

    def bye(self, *, keep: bool) -> None:
        """Send that the session ends now; ``keep``: what runs at the other end goes on running."""
        self._send(FrameKind.BYE, 0, encode_json({"keep": keep}))

    @property
    def farewell(self) -> Mapping[str, Any] | None:
        """The peer's BYE with its ``keep``; None where none came. `carry` ends at it."""
        return self._farewell

    def stream(self, number: int | None = None) -> WireStream:
        """Open a stream, or attach to the one that the peer opened as ``number``.

        Either end may open one; the number travels in an ask or in its answer. The peer may write
        before this end has attached.
        """
        if number is None:
            number = next(self._numbers)
        waiting = self._unattached.pop(number, None)
        return waiting or self._streams.get(number) or self._make_stream(number)

    def _meet_stream(self, number: int) -> WireStream:
        """Make the stream of the peer's first frame, which may be its reset, for who attaches."""
        stream = self._unattached[number] = self._make_stream(number)
        if len(self._unattached) > UNATTACHED_MAX:
            self._unattached.popitem(last=False)
        return stream

    def _make_stream(self, number: int) -> WireStream:
        stream = WireStream(number, self._send, self._reset, self._drop_stream)
        self._streams[number] = stream
        return stream

    def _reset(self, number: int) -> None:
        self._resetting.add(number)
        self._drop_stream(number)
        self._lanes.empty_stream(number)

    def _drop_stream(self, number: int) -> None:
        self._streams.pop(number, None)

    # -- the end of a session

    def forget(self, why: str) -> None:
        """Begin a new session: each ask fails, each stream is reset, what is served is cancelled.

        A connection that is being carried ends.
        """
        asks, streams = self._asks, list(self._streams.values())
        for task in self._served.forget():
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        self.session = ""
        self._begin()
        asks.forget(why)
        for stream in streams:
            stream.lose(why)
        if self._over is not None and not self._over.done():
            self._over.set_result(why)

    async def aclose(self) -> None:
        """Forget the session and wait until nothing of it runs any more."""
        self.forget(f"The session with {self._peer} was closed.")
        while self._ending:
            await asyncio.wait(self._ending)

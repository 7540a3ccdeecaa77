"""Read, write and query one NBD export: blocking, several requests under way, answers in any order.

Used by `nbd.scan`, `nbd.mend`, `nbd.compare` and `nbd.digest`; speaks the protocol of `nbd.wire`,
over TLS through `nbd.tls` where the address says so.

Invariant: it never retries: an error ends it. Requests without an answer are counted, so that a
caller that gives up knows whether a write may still be executed (`NbdClient.unanswered`). An
address with TLS is never spoken to in plain beyond the greeting and STARTTLS.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from coloctl.model.tls import TlsFiles
from coloctl.nbd import tls, wire
from coloctl.nbd.wire import Can, ChunkType, Extent, NBDFailed, Option, Reply, RequestType

#: A server that is silent for so long is given up, seconds. The supervisor's heartbeat is
#: faster; this is for a worker that has lost its supervisor as well.
ANSWER_WAIT_S = 60.0


class Transport(Protocol):
    """The methods of a socket that a client uses."""

    def sendall(self, data: Any, /) -> None:
        """Send all the bytes."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive into the buffer; return the number of bytes, 0 at the end."""
        ...

    def close(self) -> None:
        """Close the connection."""


@dataclass
class NbdRequest:
    """One request under way, and its result so far."""

    kind: RequestType
    cookie: int
    offset: int
    length: int
    data: bytearray = field(default_factory=bytearray)  #: of a read; holes are zeros
    #: Of a block status, by the number of its context.
    extents: dict[int, list[Extent]] = field(default_factory=dict)
    error: str = ""
    done: bool = False


class NbdClient:
    """An export in its transmission phase; made by `connect` or over any transport."""

    def __init__(
        self,
        transport: Transport,
        export: str,
        contexts: Iterable[str] = (),
        encrypt: Callable[[], Transport] | None = None,
    ) -> None:
        """Open the export. Raises `NBDFailed` when it, or one of ``contexts``, is not there.

        ``contexts`` are those of `status`; ``base:allocation`` may be missing. ``encrypt`` makes
        the transport of the rest once the server has agreed. Closes the transport when it fails.
        """
        self._transport = transport
        self.export = export
        self.size = 0
        self.offers = Can(0)
        self._contexts: dict[str, int] = {}
        self._asked: dict[int, NbdRequest] = {}
        self._cookie = 0
        try:
            self._shake_hands(tuple(contexts), encrypt)
        except BaseException:
            self._transport.close()
            raise

    @property
    def unanswered(self) -> int:
        """The number of requests that may or may not have been, or may yet be, executed."""
        return len(self._asked)

    def read(self, offset: int, length: int) -> NbdRequest:
        """Request a range; after `wait` the data is in ``.data``.

        Raises `NBDFailed` when the request cannot be sent, as `write`, `zero` and `flush` do.
        """
        asked = self._ask(RequestType.READ, offset, length)
        asked.data = bytearray(length)
        return asked

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> NbdRequest:
        """Send a write; it is done when `wait` returns. Raises `NBDFailed` as `read`."""
        return self._ask(RequestType.WRITE, offset, len(data), data)

    def zero(self, offset: int, length: int) -> NbdRequest:
        """Send a request for zeros; the range reads as zeros when `wait` returns.

        Raises `NBDFailed` as `read`.
        """
        return self._ask(RequestType.WRITE_ZEROES, offset, length)

    def flush(self) -> None:
        """Flush every write that was answered to the disk of the export.

        Raises `NBDFailed` as `wait`. Does nothing where the server offers no flush.
        """
        if Can.FLUSH in self.offers:
            self.wait(self._ask(RequestType.FLUSH, 0, 0))

    def knows(self, context: str) -> bool:
        """Return whether the export has that context."""
        return context in self._contexts

    def status(self, context: str, offset: int, length: int) -> list[Extent]:
        """Return the extents from ``offset`` on, as far as the server reports at once.

        There is one at least: raises `NBDFailed` when the server reports none.
        """
        found = self.wait(self._ask(RequestType.BLOCK_STATUS, offset, length))
        extents = found.extents.get(self._contexts[context])
        if not extents:
            raise NBDFailed(f"{self.export}: no block status at {offset}")
        return extents

    def wait(self, asked: NbdRequest) -> NbdRequest:
        """Wait until ``asked`` was answered, and return it; raises `NBDFailed` with its error."""
        while not asked.done:
            self._take_reply()
        if asked.error:
            what = f"{asked.kind.name.lower()} of {asked.length} bytes at {asked.offset}"
            raise NBDFailed(f"{self.export}: {what}: {asked.error}")
        return asked

    def settle(self) -> None:
        """Wait until no request is under way any more, with any result.

        Raises `NBDFailed` when the connection is lost or what comes is not NBD.
        """
        while self._asked:
            self._take_reply()

    def close(self) -> None:
        """Announce the end to the server, where it still listens, and close the connection."""
        try:
            self._transport.sendall(wire.request(RequestType.DISCONNECT, 0))
        except OSError:
            pass  # it left first
        finally:
            self._transport.close()

    # -- requests and replies

    def _ask(self, kind: RequestType, offset: int, length: int, data: Any = b"") -> NbdRequest:
        self._cookie += 1
        asked = NbdRequest(kind, self._cookie, offset, length)
        self._asked[asked.cookie] = asked
        self._send(wire.request(kind, asked.cookie, offset, length))
        if len(data):
            self._send(data)
        return asked

    def _take_reply(self) -> None:
        magic = wire.U32.unpack(self._receive(4))[0]
        if magic == wire.SIMPLE_MAGIC:
            error, cookie = wire.SIMPLE_REPLY.unpack(self._receive(wire.SIMPLE_REPLY.size))
            asked = self._of(cookie)
            if error:
                asked.error = f"error {error}"
            elif asked.kind is RequestType.READ:
                self._fill(memoryview(asked.data))
            self._finish(asked)
        elif magic == wire.CHUNK_MAGIC:
            self._take_chunk()
        else:
            raise NBDFailed(f"{self.export}: what answers there does not speak NBD")

    def _take_chunk(self) -> None:
        flags, kind, cookie, length = wire.CHUNK.unpack(self._receive(wire.CHUNK.size))
        if length > wire.LONGEST:
            raise NBDFailed(f"{self.export}: an answer of {length} bytes")
        asked = self._of(cookie)
        if kind == ChunkType.DATA:
            offset = wire.U64.unpack(self._receive(8))[0]
            self._fill(self._part(asked, offset, length - 8))
        else:
            payload = self._receive(length)
            if kind & wire.CHUNK_ERROR_BIT:
                asked.error = wire.error_of(payload)
            elif kind == ChunkType.HOLE:
                self._part(asked, *wire.HOLE.unpack(payload))  # its zeros are there already
            elif kind == ChunkType.BLOCK_STATUS:
                told = wire.extents(payload, asked.offset, asked.offset + asked.length)
                asked.extents[wire.U32.unpack_from(payload)[0]] = told
            elif kind != ChunkType.NONE:
                raise NBDFailed(f"{self.export}: an answer of type {kind}")
        if flags & wire.CHUNK_DONE:
            self._finish(asked)

    def _part(self, asked: NbdRequest, offset: int, length: int) -> memoryview:
        begin = offset - asked.offset
        if asked.kind is not RequestType.READ or begin < 0 or begin + length > asked.length:
            raise NBDFailed(f"{self.export}: data that was not requested")
        return memoryview(asked.data)[begin : begin + length]

    def _of(self, cookie: int) -> NbdRequest:
        if cookie not in self._asked:
            raise NBDFailed(f"{self.export}: an answer to no request")
        return self._asked[cookie]

    def _finish(self, asked: NbdRequest) -> None:
        asked.done = True
        del self._asked[asked.cookie]

    # -- the handshake

    def _shake_hands(
        self, contexts: tuple[str, ...], encrypt: Callable[[], Transport] | None
    ) -> None:
        magic, option_magic, flags = wire.GREETING.unpack(self._receive(wire.GREETING.size))
        both = wire.FIXED_NEWSTYLE | wire.NO_ZEROES
        if (magic, option_magic) != (wire.MAGIC, wire.OPTION_MAGIC) or flags & both != both:
            raise NBDFailed(f"{self.export}: what answers there is no NBD server of today")
        self._send(wire.U32.pack(both))
        if encrypt is not None:
            self._choose(Option.STARTTLS, b"")
            self._transport = encrypt()
        self._choose(Option.STRUCTURED_REPLY, b"")
        if contexts:
            queries = b"".join(map(wire.text, contexts))
            asked = wire.text(self.export) + wire.U32.pack(len(contexts)) + queries
            for kind, payload in self._choose(Option.SET_META_CONTEXT, asked):
                if kind == Reply.META_CONTEXT:
                    self._contexts[payload[4:].decode()] = wire.U32.unpack_from(payload)[0]
        for missing in set(contexts) - {*self._contexts, wire.BASE_ALLOCATION}:
            raise NBDFailed(f"{self.export}: the server has no {missing}")
        for kind, payload in self._choose(Option.GO, wire.text(self.export) + wire.U16.pack(0)):
            if kind == Reply.INFO and wire.U16.unpack_from(payload)[0] == 0:
                _, self.size, offers = wire.EXPORT_INFO.unpack(payload)
                self.offers = Can(offers)

    def _choose(self, kind: Option, data: bytes) -> list[tuple[int, bytes]]:
        """Return the server's replies to an option, up to its acknowledgement."""
        self._send(wire.option(kind, data))
        replies: list[tuple[int, bytes]] = []
        while True:
            head = wire.OPTION_REPLY.unpack(self._receive(wire.OPTION_REPLY.size))
            magic, about, what, length = head
            if magic != wire.OPTION_REPLY_MAGIC or about != kind or length > wire.LONGEST:
                raise NBDFailed(f"{self.export}: what answers there does not speak NBD")
            payload = self._receive(length)
            if what & wire.ERROR_BIT:
                why = payload.decode(errors="replace") or f"error {what ^ wire.ERROR_BIT}"
                raise NBDFailed(f"{self.export}: {kind.name.lower()} was refused: {why}")
            if what == Reply.ACK:
                return replies
            replies.append((what, payload))

    # -- bytes

    def _send(self, data: Any) -> None:
        try:
            self._transport.sendall(data)
        except OSError as error:
            raise NBDFailed(f"{self.export}: {_reason(error)}") from error

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _fill(self, view: memoryview) -> None:
        while len(view):
            try:
                count = self._transport.recv_into(view)
            except OSError as error:
                raise NBDFailed(f"{self.export}: {_reason(error)}") from error
            if not count:
                raise NBDFailed(f"{self.export}: the server closed the connection")
            view = view[count:]


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {ANSWER_WAIT_S:.0f} s"
    return tls.sentence(error)


def connect(at: Mapping[str, Any], contexts: Iterable[str] = ()) -> NbdClient:
    """Open the export ``at["export"]`` at ``at["unix"]``, or at ``at["address"]`` and
    ``at["port"]``, there with the files of ``at["tls"]`` where the wire is encrypted.

    Raises `NBDFailed`.
    """
    export = str(at["export"])
    try:
        sock = _unix(str(at["unix"])) if "unix" in at else _tcp(str(at["address"]), int(at["port"]))
    except OSError as error:
        raise NBDFailed(f"{export}: no connection: {_reason(error)}") from error
    if "tls" not in at:
        return NbdClient(sock, export, contexts)
    files = TlsFiles.read(at["tls"])
    return NbdClient(sock, export, contexts, lambda: tls.encrypt(sock, files, export))


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(ANSWER_WAIT_S)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _tcp(address: str, port: int) -> socket.socket:
    sock = socket.create_connection((address, port), timeout=ANSWER_WAIT_S)
    # Requests are small, and each would wait for the acknowledgement of the one before.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock

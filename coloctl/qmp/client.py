"""Extend the QMP library's client: note sent and unanswered commands, and why it was lost.

Called by `qmp.session` alone, which adds deadlines and the errors of `errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from ssl import SSLContext
from typing import Any

from qemu.qmp import QMPClient, Runstate, StateError
from qemu.qmp.message import Message
from qemu.qmp.models import Greeting

from coloctl.qmp.command import Command

# What the library would log, this module raises or records.
logging.getLogger("qemu.qmp").propagate = False

RecordMessage = Callable[[str, Mapping[str, Any]], None]

#: The longest message that is taken from a QEMU, bytes: one is parsed in one go, 20 ms for this
#: length, and nothing else happens meanwhile. The whole schema of QEMU 11.1 has 0.3 MB.
MESSAGE_MAX = 2 << 20
#: Longer ones are counted in a record and not kept.
RECORD_MAX = 64 << 10
#: Of what is left of a broken connection, bytes per read.
CHUNK = 64 << 10


@dataclass(frozen=True)
class Event:
    """One QMP event."""

    name: str
    data: Mapping[str, Any]
    at_s: float  #: QEMU's own timestamp: wall clock of its host, microseconds after the point
    seen_s: float  #: our monotonic clock when it was read


def _event(message: Mapping[str, Any]) -> Event:
    stamp = message.get("timestamp", {})
    return Event(
        name=message["event"],
        data=message.get("data", {}),
        at_s=stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6,
        seen_s=time.monotonic(),
    )


class KeepingReader(asyncio.StreamReader):
    """A stream that ends after all that has arrived, also when a write found the connection broken.

    asyncio's own forgets what it has read, and what the kernel holds, as soon as a write fails. A
    QEMU whose guest powers off sends SHUTDOWN and answers, then it ends: the next beat's probe
    would find a broken connection, and the end of the guest would look like a crash.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit=limit)
        self.ended = False
        self._source: asyncio.BaseTransport | None = None

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Note where the last bytes can be read."""
        super().set_transport(transport)
        self._source = transport

    def feed_eof(self) -> None:
        """End the stream after what was fed."""
        self.ended = True
        super().feed_eof()

    def set_exception(self, exc: BaseException) -> None:
        """End the stream after what was fed and what the kernel still holds."""
        if self.ended:
            return
        if self._source is not None and (sock := self._source.get_extra_info("socket")):
            with contextlib.suppress(OSError):  # nothing is left, or nothing can be read
                for _ in range(MESSAGE_MAX // CHUNK):
                    if not (data := os.read(sock.fileno(), CHUNK)):
                        break
                    self.feed_data(data)
        self.feed_eof()


class HookedClient(QMPClient):
    """One connection; `qmp.session.Session` owns it."""

    def __init__(
        self,
        name: str,
        on_event: Callable[[Event], None],
        on_lost: Callable[[], None] | None,
        record: RecordMessage | None,
    ) -> None:
        super().__init__(name, readbuflen=MESSAGE_MAX)
        self.negotiate = False  # done by Session.open, which chooses whether to ask for oob
        self.events.event_filter = self._hand_on
        self.lost = asyncio.Event()
        self.why_lost = "coloctl closed the connection"
        self.unanswered: dict[object, str] = {}
        self._probes: dict[object, Callable[[], None]] = {}
        self._on_event = on_event
        self._on_lost = on_lost
        self._record = record
        self._length = 0  #: of the message that was read last, bytes

    async def _do_connect(
        self, address: str | tuple[str, int] | socket.socket, ssl: SSLContext | None = None
    ) -> None:
        """Connect as the library does, and read through a `KeepingReader`; a socket alone."""
        assert isinstance(address, socket.socket)
        self._set_state(Runstate.CONNECTING)
        await asyncio.sleep(0)
        loop, reader = asyncio.get_running_loop(), KeepingReader(self.readbuflen)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=address)
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _do_recv(self) -> Message:
        """Read one message, and give all other tasks a turn before it is handled.

        A message that has arrived already is read without a wait: a peer that floods coloctl would
        hold the loop.
        """
        line = await self._readline()
        self._length = len(line)
        await asyncio.sleep(0)
        return Message(line, eager=True)

    def _hand_on(self, message: Message) -> bool:
        """Forward the event, and make the library keep no event: it would keep all for ever."""
        self._on_event(_event(message))
        return False

    def probe(self, command: Command, answered: Callable[[], None]) -> bool:
        """Write the command past the library's queue and its task; see `Session.probe`.

        Raises `StateError` without a connection.
        """
        key = f"probe-{command.execute}"
        if key in self._probes:
            return False
        if self._writer is None or self.runstate is not Runstate.RUNNING:
            raise StateError("no connection", self.runstate, Runstate.RUNNING)
        self._probes[key] = answered
        self.unanswered[key] = command.execute
        self._writer.write(_probe_line(command.execute, command.oob, key))
        return True

    async def _on_message(self, msg: Message) -> None:
        answered = self._probes.pop(msg.get("id"), None)
        if answered is None:
            await super()._on_message(msg)
        else:
            answered()

    async def _get_greeting(self) -> Greeting:
        """Read the greeting; events ahead of it are recorded and not reported.

        QEMU takes a connection in one thread and sends events in others, to every monitor that is
        not negotiating; one that has just been taken is not yet (monitor/qmp.c, docs/qemu.md).
        Events that are lost while it negotiates may follow, so those ahead are not the complete
        sequence.
        """
        while "event" in (message := await self._recv()):
            continue
        return Greeting(message)

    # The library's versions of these two hooks pretty-print every message for its debug log.

    def _cb_outbound(self, msg: Message) -> Message:
        self.unanswered[msg.get("id")] = str(msg.get("execute") or msg.get("exec-oob"))
        if self._record:
            self._record("sent", msg)
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        if "event" not in msg:
            self.unanswered.pop(msg.get("id"), None)
            if msg.get("id") in self._probes:
                return msg
        if self._record:
            kept = msg if self._length <= RECORD_MAX else _shortened(msg, self._length)
            self._record("received", kept)
        return msg

    async def _bh_disconnect(self) -> None:
        reader, reading = self._reader, self._reader_task
        if isinstance(reader, KeepingReader) and reader.ended and reading is not None:
            await asyncio.wait({reading})  # it handles what has arrived, and waits for nothing
        self._note_why()
        self.lost.set()
        if self._on_lost:
            self._on_lost()
        if self._writer is not None and (self._pending or self.unanswered or self.unsent):
            # A graceful close would wait for the other end to read what is left, perhaps for ever.
            self._writer.transport.abort()
        await super()._bh_disconnect()

    def _note_why(self) -> None:
        for task in (self._reader_task, self._writer_task):
            error = task.exception() if task and task.done() and not task.cancelled() else None
            if isinstance(error, EOFError):
                self.why_lost = "QEMU closed the connection"
            elif isinstance(error, OSError):
                self.why_lost = f"the connection broke ({error.strerror or error})"
            elif error is not None:
                self.why_lost = "it sent something that is not QMP"

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return 0 if self._writer is None else self._writer.transport.get_write_buffer_size()


def _shortened(msg: Message, length: int) -> Mapping[str, Any]:
    """Return what a record keeps of a long message."""
    kept = {key: msg[key] for key in ("id", "event", "timestamp") if key in msg}
    return {**kept, "return" if "return" in msg else "left-out": f"{length} bytes"}


@cache
def _probe_line(name: str, oob: bool, key: str) -> bytes:
    return json.dumps({"exec-oob" if oob else "execute": name, "id": key}).encode() + b"\r\n"

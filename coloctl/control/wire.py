"""Encode and decode the messages of the control socket.

Used by `control.server`, `control.connection` and `control.client`. Standard library only, because
every verb imports it.

The format is QMP's (QEMU, docs/interop/qmp-spec): JSON objects, one per line from the server, and
from clients one after the other with or without line breaks between them.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coloctl.model.pairevent import PairEvent

#: The longest request, bytes; the longest that a verb sends has some 1,000. It is parsed in one go,
#: 3 ms for this length, and the supervisor does nothing else meanwhile.
MESSAGE_MAX = 256 << 10
#: The longest answer, bytes: a recording of 2,000 messages has a quarter of it.
ANSWER_MAX = 64 << 20

#: What matters outside of a string, and inside of one.
_STRUCTURE, _STRING = re.compile(rb'["{}\[\]]'), re.compile(rb'["\\]')
_SPACE = re.compile(rb"[ \t\r\n]+")


class WireError(Exception):
    """Bytes that are no JSON object; the sentence is meant for the peer."""


class MessageTooLong(WireError):
    """More than `MESSAGE_MAX` bytes without an end: the stream is of no further use."""


def encode(message: Mapping[str, Any]) -> bytes:
    """Encode ``message`` as one line; raises TypeError or ValueError for what JSON cannot hold."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


class Splitter:
    """Cuts a byte stream into JSON objects, wherever the reads happened to end.

    Clients of QMP need not send line breaks (qmp-shell does not), so an object ends where its
    braces do. Every byte is looked at once.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._at = 0  #: what comes before has been looked at
        self._depth = 0
        self._quoted = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add ``data`` and iterate over every object that is complete now, as bytes.

        Raises `WireError` for what cannot begin an object (the rest of ``data`` is dropped, and the
        next call starts afresh) and `MessageTooLong`.
        """
        self._pending += data
        while self._begun():
            end = self._end()
            if (end or len(self._pending)) > MESSAGE_MAX:
                raise MessageTooLong(f"A message may have {MESSAGE_MAX} bytes.")
            if not end:
                return
            whole = bytes(self._pending[:end])
            del self._pending[:end]
            self._at = 0
            yield whole

    def _begun(self) -> bool:
        """Return whether an object has begun; white space before it is dropped."""
        if self._depth:
            return True
        if blanks := _SPACE.match(self._pending):
            del self._pending[: blanks.end()]
        if self._pending and not self._pending.startswith(b"{"):
            self._pending.clear()
            raise WireError("Each request must be a JSON object in braces.")
        return bool(self._pending)

    def _end(self) -> int:
        """Return where the object that has begun ends; 0 where that has not come yet."""
        while True:
            found = (_STRING if self._quoted else _STRUCTURE).search(self._pending, self._at)
            if found is None:
                self._at = len(self._pending)
                return 0
            mark = found[0]
            if mark == b"\\":
                if found.end() == len(self._pending):
                    self._at = found.start()  # what it escapes has not come yet
                    return 0
                self._at = found.end() + 1
                continue
            self._at = found.end()
            if mark == b'"':
                self._quoted = not self._quoted
            elif mark in (b"{", b"["):
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    return self._at


def decode(raw: bytes) -> dict[str, Any]:
    """Decode the object that ``raw`` holds; raises `WireError`."""
    try:
        message = json.loads(raw, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise WireError(f"This is not valid JSON: {error}.") from None
    if not isinstance(message, dict):
        raise WireError("Each request must be a JSON object in braces.")
    return message


def _finite(text: str) -> float:
    """Read a number; refuse those that JSON does not have.

    A request's ``id`` could not be sent back to its sender otherwise.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number that JSON has")
    return number


def document_of(answer: Any) -> Any:
    """Return what JSON has of a handler's answer: its document, where it has one of its own."""
    return answer.to_json() if hasattr(answer, "to_json") else answer


def event_document(event: PairEvent) -> dict[str, Any]:
    """Return ``event`` as QMP writes one, stamped with the time of day."""
    seconds, micro = divmod(time.time_ns() // 1000, 1_000_000)
    return {
        "event": event.NAME,
        "data": event.to_json(),
        "timestamp": {"seconds": seconds, "microseconds": micro},
    }

"""Send the differences of a survivor's disk to a replica; the program that runs beside the
survivor.

Started by `colo.difference`; `nbd.compare` uses its `Comparison`. Reads with `nbd.scan`. It takes
one task per line of stdin, in JSON:

- ``{"compare": SOURCE, "target": TARGET, "key": HEX, "rate": BYTES_PER_S}``, then the lines of
  `nbd.digest` for that target: chunks whose digests differ are sent;
- ``{"copy": SOURCE, "bitmap": NAME, "target": TARGET, "rate": ..., "flush": BOOL}``: chunks in
  which that dirty bitmap has a bit set are sent.

It prints ``{"writing": true}`` before its first write, ``{"at": ..., "read": ..., "sent": ...}``
now and then, ``{"done": true, ...}`` when a task is, and ``{"failed": SENTENCE, "settled": BOOL}``
before it gives up: settled when no write of its is under way any more.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from coloctl.nbd import wire
from coloctl.nbd.client import NbdClient, NbdRequest, connect
from coloctl.nbd.scan import (
    DIGEST,
    Grain,
    Piece,
    allocation,
    digest,
    dirty,
    is_zero,
    pieces,
    zero_digest,
)
from coloctl.ratelimit import RateLimit

Message = Mapping[str, Any]
Connect = Callable[[Message, Iterable[str]], NbdClient]

#: Bytes that may be on their way to the replica, so that the link never idles for an answer.
WINDOW = 8 * 1024 * 1024
#: Pieces of zeros in one request; a disk without a fast way to zero them has to write them.
ZEROS = 64
#: Time between two reports of progress, seconds.
PROGRESS_S = 0.25


class SendLimit:
    """Keeps what is sent below ``rate`` bytes per second on average; 0: without a limit."""

    def __init__(
        self,
        rate: int,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._now, self._sleep = now, sleep
        self._limit = RateLimit(0, rate) if rate else None

    def sent(self, length: int) -> None:
        """Wait until more may be sent. Unused time is not saved up."""
        if self._limit is not None:
            self._sleep(self._limit.wait_s(self._now(), length))


class Outbox:
    """Writes on their way to one replica: neighbours joined, a bounded number under way."""

    def __init__(self, client: NbdClient, grain: Grain, before: Callable[[], None]) -> None:
        """Call ``before`` before the first write."""
        self.client, self._grain, self._before = client, grain, before
        self.sent = 0  #: bytes of data that went over the link; zeros travel as one flag
        self.pace = SendLimit(0)
        self._begin = self._end = 0  #: the run of neighbours that is not sent yet
        self._joined: bytearray | None = None  #: its data; None: it is zeros
        self._under_way: deque[NbdRequest] = deque()

    def put(self, begin: int, end: int, data: memoryview | None) -> None:
        """Put ``data``, or zeros, into the range of the replica."""
        if data is None and wire.Can.WRITE_ZEROES not in self.client.offers:
            data = memoryview(bytes(end - begin))
        longest = self._grain.piece * (ZEROS if data is None else 1)
        same = self._begin < self._end == begin and (self._joined is None) == (data is None)
        if not same or end - self._begin > longest:
            self._send_joined()
            self._begin, self._joined = begin, None if data is None else bytearray()
        if self._joined is not None and data is not None:
            self._joined += data
        self._end = end

    def settle(self, *, flush: bool) -> None:
        """Wait until all writes so far are on the replica; ``flush``: beyond its host's caches."""
        self._send_joined()
        while self._under_way:
            self.client.wait(self._under_way.popleft())
        if flush:
            self.client.flush()

    def _send_joined(self) -> None:
        length = self._end - self._begin
        if not length:
            return
        self._before()
        if self._joined is None:
            self._track(self.client.zero(self._begin, length))
        else:
            self._track(self.client.write(self._begin, self._joined))
            self.sent += length
            self.pace.sent(length)
        self._begin = self._end

    def _track(self, request: NbdRequest) -> None:
        self._under_way.append(request)
        while len(self._under_way) > max(1, WINDOW // self._grain.piece):
            self.client.wait(self._under_way.popleft())


class Taker(Protocol):
    """The receiver of chunks that differ."""

    def put(self, begin: int, end: int, data: memoryview | None) -> None:
        """Take a chunk that differs; ``data`` is None where it is all zeros."""


class Comparison:
    """One disk compared with the digests of its replica, as they come."""

    def __init__(self, source: NbdClient, outbox: Taker, key: bytes, grain: Grain) -> None:
        self._source, self._outbox, self._key, self._grain = source, outbox, key, grain
        self._pieces: Iterator[Piece] = pieces(source, allocation(source, grain), grain)
        self._piece = Piece(0, 0, None)
        self.at = 0  #: the disk up to here was compared
        self.read = 0  #: bytes of data read from the survivor's disk

    def hear(self, begin: int, end: int, theirs: bytes | None) -> None:
        """Take the replica's digests of that range; None: it is all zeros there.

        Raises `NBDFailed` when the range does not follow the one before.
        """
        if begin != self.at or end > self._source.size:
            raise wire.NBDFailed(f"the digests of {begin} to {end} came after {self.at}")
        while self.at < end:
            if self.at == self._piece.end:
                self._piece = next(self._pieces)
                self.read += 0 if self._piece.data is None else len(self._piece.data)
            upto = min(end, self._piece.end)
            if theirs is not None or self._piece.data is not None:
                self._compare(upto, begin, theirs)
            self.at = upto

    def _compare(self, upto: int, begin: int, theirs: bytes | None) -> None:
        chunk, key = self._grain.chunk, self._key
        for at in range(self.at, upto, chunk):
            end = min(at + chunk, upto)
            zeros = zero_digest(end - at, key)
            data = self._piece.part(at, end)
            mine = zeros if data is None else digest(data, key)
            n = (at - begin) // chunk * DIGEST
            if mine != (zeros if theirs is None else theirs[n : n + DIGEST]):
                self._outbox.put(at, end, None if mine == zeros else data)

    @property
    def complete(self) -> bool:
        return self.at == self._source.size

    def close(self) -> None:
        """Close the connection to the survivor's disk."""
        self._source.close()


class Mender:
    """The whole program: `hear` takes its tasks, and ``say`` carries its answers."""

    def __init__(
        self,
        say: Callable[[Message], None],
        connect: Connect = connect,
        grain: Grain = Grain(),  # noqa: B008  # frozen
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._connect, self._grain, self._now = say, connect, grain, now
        self._replicas: dict[str, Outbox] = {}
        self._comparison: Comparison | None = None
        self._outbox: Outbox | None = None
        self._wrote = False
        self._told_s = now()

    def hear(self, message: Message) -> bool:
        """Take one line of stdin and act on it; return False when it has given up and reported
        that.
        """
        try:
            if "failed" in message:
                raise wire.NBDFailed(str(message["failed"]))
            if "compare" in message:
                self._begin(message)
            elif "copy" in message:
                self._copy(message)
            elif self._comparison is None or self._outbox is None:
                raise wire.NBDFailed("there is nothing to compare with")
            elif "over" in message:
                self._finish(self._comparison, self._outbox)
            else:
                theirs = None if "zeros" in message else bytes.fromhex(message["digests"])
                self._comparison.hear(message["begin"], message["end"], theirs)
                self._tell_progress(self._comparison.at, self._comparison.read, self._outbox)
        except wire.NBDFailed as error:
            self._say({"failed": error.message, "settled": self._settled()})
            return False
        return True

    def close(self) -> None:
        """Close every connection."""
        if self._comparison:
            self._comparison.close()
        for outbox in self._replicas.values():
            outbox.client.close()

    def _begin(self, message: Message) -> None:
        source = self._connect(message["compare"], [wire.BASE_ALLOCATION])
        self._outbox = self._open(source, message)
        self._comparison = Comparison(
            source, self._outbox, bytes.fromhex(message["key"]), self._grain
        )

    def _finish(self, comparison: Comparison, outbox: Outbox) -> None:
        if not comparison.complete:
            raise wire.NBDFailed(f"the digests end at {comparison.at}")
        outbox.settle(flush=True)
        comparison.close()
        self._comparison = None
        self._done(comparison.at, comparison.read, outbox)

    def _copy(self, message: Message) -> None:
        bitmap, read = str(message["bitmap"]), 0
        source = self._connect(message["copy"], [wire.dirty_bitmap(bitmap)])
        try:
            outbox = self._open(source, message)
            for piece in pieces(source, dirty(source, bitmap, self._grain), self._grain):
                read += piece.end - piece.begin
                for at in range(piece.begin, piece.end, self._grain.chunk):
                    end = min(at + self._grain.chunk, piece.end)
                    data = piece.part(at, end)
                    outbox.put(at, end, None if data is None or is_zero(data) else data)
                self._tell_progress(piece.end, read, outbox)
            outbox.settle(flush=bool(message["flush"]))
        finally:
            source.close()
        self._done(source.size, read, outbox)

    def _open(self, source: NbdClient, message: Message) -> Outbox:
        """Return the replica's outbox for one task; one that was open stays so."""
        at = message["target"]
        outbox = self._replicas.get(at["export"])
        if outbox is None:
            outbox = Outbox(self._connect(at, []), self._grain, self._before_writing)
            self._replicas[at["export"]] = outbox
        if outbox.client.size != source.size:
            sizes = f"{source.size} and {outbox.client.size} bytes"
            raise wire.NBDFailed(f"{at['export']} is of another size on the replica: {sizes}")
        outbox.sent, outbox.pace = 0, SendLimit(int(message["rate"]))
        return outbox

    def _before_writing(self) -> None:
        if not self._wrote:
            self._wrote = True
            self._say({"writing": True})

    def _settled(self) -> bool:
        """Return whether no write is under way any more, with any result."""
        for outbox in self._replicas.values():
            try:
                outbox.client.settle()
            except wire.NBDFailed:
                return False
        return True

    def _tell_progress(self, at: int, read: int, outbox: Outbox) -> None:
        if self._now() - self._told_s >= PROGRESS_S:
            self._told_s = self._now()
            self._say({"at": at, "read": read, "sent": outbox.sent})

    def _done(self, at: int, read: int, outbox: Outbox) -> None:
        self._say({"done": True, "at": at, "read": read, "sent": outbox.sent})


def main() -> int:
    """Run the tasks of stdin until its end; return 1 when one failed, and then at once."""

    def say(message: Message) -> None:
        print(json.dumps(message), flush=True)

    mender = Mender(say)
    try:
        going = all(mender.hear(json.loads(line)) for line in sys.stdin)
        mender.close()
    except BrokenPipeError:  # the reader has gone
        return 1
    return 0 if going else 1


if __name__ == "__main__":
    sys.exit(main())

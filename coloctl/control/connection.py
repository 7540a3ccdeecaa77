"""Send to one client of the control socket, through a bounded queue.

Made by `control.server` for every connection; encodes with `control.wire`.

Invariant: no client blocks its sender. One that leaves more than `OUTBOX_MAX` messages unread is
dropped, and a connection that ends is closed within `FLUSH_WAIT_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque

from coloctl.control import wire
from coloctl.model.pairevent import ClientDropped

log = logging.getLogger(__name__)

#: Messages that wait for one client; a few hundred bytes each.
OUTBOX_MAX = 1000
#: Seconds for a client that leaves or is dropped to read what was queued for it.
FLUSH_WAIT_S = 2.0


class Connection:
    """One connection: what still waits to be sent, and how it ends."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.reader = reader
        self.negotiated = False
        self.asking = False  #: a request of it is under way
        self._writer = writer
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._patience = asyncio.timeout(None)
        self._ending = False
        writer.transport.set_write_buffer_limits(0)  # so that drained means: the kernel has it

    def send(self, message: bytes) -> None:
        """Queue ``message``, or drop the client when it has left too many unread."""
        if self._ending:
            return
        if len(self._outbox) >= OUTBOX_MAX:
            self.drop(f"It left {OUTBOX_MAX} messages unread.")
            return
        self._outbox.append(message)
        self._wake.set()

    def drop(self, reason: str) -> None:
        """Disconnect the client; it gets the reason if it reads again within `FLUSH_WAIT_S`."""
        log.warning("Control client %d is dropped: %s", self.number, reason)
        self._outbox.append(wire.encode(wire.event_document(ClientDropped(reason=reason))))
        self.end()

    @property
    def leaving(self) -> bool:
        """True once the client was dropped or ended, and only reads what was queued for it."""
        return self._ending

    def end(self) -> None:
        """Accept no more messages; those queued have `FLUSH_WAIT_S` to go out."""
        if not self._ending:
            self._ending = True
            self._patience.reschedule(asyncio.get_running_loop().time() + FLUSH_WAIT_S)
            self._wake.set()

    async def write_out(self) -> None:
        """Send what is queued until the client was ended or is gone; close its connection."""
        try:
            # A peer that is gone, or does not read, has no use for the rest.
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with self._patience:
                    while self._outbox or not self._ending:
                        if self._outbox:
                            self._writer.write(self._outbox.popleft())
                            await self._writer.drain()
                        else:
                            self._wake.clear()
                            await self._wake.wait()
        finally:
            self._ending = True
            self._writer.transport.abort()

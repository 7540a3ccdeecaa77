"""Keep the counted frames that were sent until the peer acknowledges them, to send them again.

Called by `host.wire.mux`.

Invariant: each counted frame of a session arrives exactly once and in order, over as many
connections as it takes. Both ends count them from the session's begin; a connection begins with
what each end has received, and the other sends the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from coloctl.host.wire.frames import FrameError

#: Of what is not acknowledged at most this is sent, bytes: four times what a peer receives between
#: two acknowledgements, so that a line is never idle for want of one.
KEPT_MAX = 4 << 20


class Unacknowledged:
    """The counted frames of a session that were sent and not acknowledged, as they travelled."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._before = 0  #: frames that were acknowledged
        self._size = 0

    @property
    def full(self) -> bool:
        """Return whether no counted frame may be sent before one is acknowledged."""
        return self._size >= KEPT_MAX

    def add(self, frame: bytes) -> None:
        """Keep a frame that is about to be sent for the first time."""
        self._frames.append(frame)
        self._size += len(frame)

    def reaches(self, received: int) -> bool:
        """Return whether a peer that received so many frames can get all the others."""
        return self._before <= received <= self._before + len(self._frames)

    def acknowledge(self, received: int) -> None:
        """Drop what the peer has received; raises `FrameError` for a number that cannot be."""
        if received > self._before + len(self._frames):
            raise FrameError(f"The other end acknowledges {received} frames, more than were sent.")
        while self._before < received:
            self._size -= len(self._frames.popleft())
            self._before += 1

    def rest(self) -> Sequence[bytes]:
        """Return the frames that are sent again on the next connection, in order."""
        return tuple(self._frames)

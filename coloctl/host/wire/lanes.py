"""Order what waits to be sent: what is urgent goes before the bytes of streams.

Called by `host.wire.mux`. Messages wait in lanes, one for each request and each stream. A beat
comes first, of which only the newest waits; then the urgent lanes in turn; then those of streams in
turn.

Invariant: frames of one lane keep their order. Example: a kill is asked for while 64 MB wait in a
stream; its ASK is the next frame. An answer of 20 MB is under way; the ASK follows its next piece.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from coloctl.host.wire.frames import Frame, FrameKind, cut

#: They follow the bytes that were written to their stream before.
_OF_STREAMS = frozenset({FrameKind.DATA, FrameKind.HOLD, FrameKind.END, FrameKind.RESET})
_OF_REQUESTS = frozenset({FrameKind.ASK, FrameKind.ANSWER, FrameKind.CANCEL})

_Lanes = OrderedDict[tuple[FrameKind, int], deque[Frame]]


class Lanes:
    """The frames of one session that wait; ``waiting`` is their payload in bytes, without beats."""

    def __init__(self) -> None:
        self.waiting = 0
        self._urgent: _Lanes = OrderedDict()
        self._streams: _Lanes = OrderedDict()
        self._beat: deque[Frame] = deque()
        self._next_beat: tuple[Frame, ...] = ()

    def put(self, kind: FrameKind, number: int, message: bytes = b"") -> None:
        """Queue a message in its lane; raises `FrameError` where it is too long."""
        frames = tuple(cut(kind, number, message))
        if kind in _OF_STREAMS:
            lanes, key = self._streams, (FrameKind.DATA, number)
        else:
            lanes, key = self._urgent, (FrameKind.ASK if kind in _OF_REQUESTS else kind, number)
        lanes.setdefault(key, deque()).extend(frames)
        self.waiting += sum(len(frame.payload) for frame in frames)

    def put_beat(self, number: int, message: bytes) -> None:
        """Queue a beat in place of one that waits and was not begun."""
        self._next_beat = tuple(cut(FrameKind.BEAT, number, message))

    def drop_beats(self) -> None:
        """Drop beats that wait or were begun: a new connection begins with none."""
        self._beat.clear()
        self._next_beat = ()

    def withdraw(self, request: int) -> None:
        """Remove an ASK of which no piece was sent."""
        self._drop(self._urgent, (FrameKind.ASK, request))

    def empty_stream(self, number: int) -> None:
        """Drop what waits for a stream that is over."""
        self._drop(self._streams, (FrameKind.DATA, number))

    def _drop(self, lanes: _Lanes, key: tuple[FrameKind, int]) -> None:
        self.waiting -= sum(len(frame.payload) for frame in lanes.pop(key, ()))

    def next(self, *, counted: bool) -> Frame | None:
        """Take the next frame; without ``counted`` only a beat. None: none waits."""
        if not self._beat:
            self._beat.extend(self._next_beat)
            self._next_beat = ()
        if self._beat:
            return self._beat.popleft()
        if not counted:
            return None
        frame = _take(self._urgent) or _take(self._streams)
        if frame is not None:
            self.waiting -= len(frame.payload)
        return frame


def _take(lanes: _Lanes) -> Frame | None:
    """Take a frame of the first lane, which becomes the last one."""
    if not lanes:
        return None
    key, lane = next(iter(lanes.items()))
    frame = lane.popleft()
    if lane:
        lanes.move_to_end(key)
    else:
        del lanes[key]
    return frame

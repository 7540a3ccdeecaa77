"""Frames: out of any cut of the byte stream come the messages that were sent, or an error."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coloctl.host.wire.frames import (
    MESSAGE_MAX,
    PIECE,
    Frame,
    FrameError,
    FrameKind,
    FrameSplitter,
    Joiner,
    cut,
    decode_json,
    receive_hello,
    send_hello,
)

pytestmark = pytest.mark.unit

SIZES = st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5])
MESSAGES = st.lists(st.tuples(st.sampled_from(FrameKind), SIZES), max_size=6)


@settings(deadline=None, max_examples=200)
@given(MESSAGES, st.lists(st.integers(1, 40_000), max_size=30), st.randoms(use_true_random=False))
def test_messages_survive_any_cut_and_any_order_of_their_pieces(
    messages: list[tuple[FrameKind, int]], cuts: list[int], random: object
) -> None:
    sent = {(kind, number): bytes([number]) * size for number, (kind, size) in enumerate(messages)}
    lanes = [list(cut(kind, number, message)) for (kind, number), message in sent.items()]
    raw = bytearray()
    while lanes:
        lane = random.choice(lanes)  # type: ignore[attr-defined]
        raw += lane.pop(0).encode()
        lanes = [lane for lane in lanes if lane]
    splitter, joiner, came = FrameSplitter(), Joiner(), {}
    for length in [*cuts, len(raw)]:
        for frame in splitter.feed(bytes(raw[:length])):
            if (message := joiner.add(frame)) is not None:
                came[frame.kind, frame.number] = message
        del raw[:length]
    assert came == sent


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_nonsense_is_frames_or_an_error(raw: bytes) -> None:
    splitter = FrameSplitter()
    try:
        frames = list(splitter.feed(raw))
    except FrameError:
        return
    assert all(len(frame.payload) <= PIECE for frame in frames)


@pytest.mark.parametrize(
    "raw",
    [
        b"COLOCTL-AGENT 1 0.1.0\n",
        (PIECE + 1).to_bytes(4, "big") + b"\x07\0\0\0\1",
        b"\0\0\0\0\x00\0\0\0\0",
        b"\0\0\0\0\x0e\0\0\0\0",
    ],
)
def test_what_is_no_frame_is_an_error(raw: bytes) -> None:
    good = Frame(FrameKind.ASK, 1, b"{}").encode()
    splitter, came = FrameSplitter(), []
    with pytest.raises(FrameError, match="no frame of this protocol"):
        came.extend(splitter.feed(good))
        came.extend(splitter.feed(raw))
    assert came == [Frame(FrameKind.ASK, 1, b"{}")]


def test_a_message_may_not_grow_without_end() -> None:
    with pytest.raises(FrameError, match="is longer than"):
        list(cut(FrameKind.ANSWER, 1, bytes(MESSAGE_MAX + 1)))
    joiner = Joiner()
    with pytest.raises(FrameError, match="of more than"):
        for _ in range(MESSAGE_MAX // PIECE + 1):
            joiner.add(Frame(FrameKind.ANSWER, 1, bytes(PIECE), more=True))


def test_the_pieces_of_a_beat_end_with_their_connection() -> None:
    joiner = Joiner()
    for kind in (FrameKind.BEAT, FrameKind.ASK):
        assert joiner.add(Frame(kind, 1, b"half", more=True)) is None
    joiner.drop_uncounted()
    assert joiner.add(Frame(FrameKind.BEAT, 1, b"whole")) == b"whole"
    assert joiner.add(Frame(FrameKind.ASK, 1, b" and half")) == b"half and half"


@pytest.mark.parametrize("message", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_damaged_json_is_a_sentence(message: bytes) -> None:
    with pytest.raises(FrameError, match=r"^A message is .*\.$"):
        decode_json(message)


async def test_a_connection_begins_with_a_hello() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    far, answering = await asyncio.open_unix_connection(sock=theirs)
    with pytest.raises(TimeoutError):
        await receive_hello(far, 0.01)
    await send_hello(writer, {"proto": 1, "session": ""})
    assert await receive_hello(far, 5) == {"proto": 1, "session": ""}
    with pytest.raises(FrameError, match="is longer than"):
        await send_hello(writer, {"pair": "x" * PIECE})
    writer.write(Frame(FrameKind.ASK, 1, b"{}").encode())
    with pytest.raises(FrameError, match="begins with ASK"):
        await receive_hello(far, 5)
    answering.transport.abort()
    with pytest.raises((EOFError, OSError)):
        await receive_hello(reader, 5)
    writer.transport.abort()

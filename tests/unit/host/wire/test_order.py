"""What is urgent goes first, and a reader that stops blocks only its own stream."""

from __future__ import annotations

import asyncio
import socket

import pytest
from support.wires import WireEnd, connected, until

from coloctl.errors import Unreachable
from coloctl.host.wire.frames import PIECE, Frame, FrameError, FrameKind, FrameSplitter, encode_json
from coloctl.host.wire.lanes import Lanes
from coloctl.host.wire.stream import WINDOW, WireStream

pytestmark = pytest.mark.unit


def drained(lanes: Lanes) -> list[tuple[FrameKind, int]]:
    """Take all that waits."""
    taken = []
    while (frame := lanes.next(counted=True)) is not None:
        taken.append((frame.kind, frame.number))
    assert lanes.waiting == 0
    return taken


def test_a_kill_is_the_next_frame_while_64_mb_wait_in_streams() -> None:
    lanes = Lanes()
    for stream in range(1, 9, 2):
        for _ in range((64 << 20) // 4 // PIECE):
            lanes.put(FrameKind.DATA, stream, bytes(PIECE))
    assert lanes.waiting == 64 << 20
    assert lanes.next(counted=True) is not None
    lanes.put(FrameKind.ASK, 5, b"kill")
    lanes.put_beat(1, b"old")
    lanes.put_beat(2, b"new")
    assert drained(lanes)[:2] == [(FrameKind.BEAT, 2), (FrameKind.ASK, 5)]


def test_a_kill_waits_for_one_piece_of_a_long_answer() -> None:
    lanes = Lanes()
    lanes.put(FrameKind.ANSWER, 2, bytes(20 << 20))
    assert lanes.next(counted=True) is not None
    lanes.put(FrameKind.ASK, 5, b"kill")
    assert (FrameKind.ASK, 5) in drained(lanes)[:2]


def test_the_frames_of_one_request_and_of_one_stream_keep_their_order() -> None:
    lanes = Lanes()
    lanes.put(FrameKind.ASK, 1, bytes(3 * PIECE))
    lanes.put(FrameKind.CANCEL, 1)
    lanes.put(FrameKind.ASK, 3, b"x")
    for stream in (2, 4):
        lanes.put(FrameKind.DATA, stream, b"x")
        lanes.put(FrameKind.HOLD, stream, bytes(4))
        lanes.put(FrameKind.DATA, stream, b"y")
        lanes.put(FrameKind.END, stream)
    taken = drained(lanes)
    assert [kind.name for kind, number in taken if number == 1] == ["ASK"] * 3 + ["CANCEL"]
    for stream in (2, 4):
        kinds = [kind.name for kind, number in taken if number == stream]
        assert kinds == ["DATA", "HOLD", "DATA", "END"]
    assert taken[:2] == [(FrameKind.ASK, 1), (FrameKind.ASK, 3)]
    assert [number for _, number in taken[-8:]] == [2, 4] * 4


def test_a_beat_that_was_begun_is_sent_to_its_end() -> None:
    lanes = Lanes()
    lanes.put_beat(1, bytes(2 * PIECE))
    first = lanes.next(counted=False)
    lanes.put_beat(2, b"new")
    second, third = lanes.next(counted=False), lanes.next(counted=False)
    assert first and second and third
    assert (first.number, second.number, third.number) == (1, 1, 2)
    lanes.put_beat(3, b"of a connection that ended")
    lanes.drop_beats()
    lanes.put(FrameKind.PUSH, 0, b"{}")
    assert lanes.next(counted=False) is None


async def test_an_ask_overtakes_all_that_no_socket_has_taken_yet() -> None:
    """A peer that reads nothing gets an ASK after what the socket's buffers held."""
    client = WireEnd(odd=True)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * PIECE)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    carrying = asyncio.create_task(client.mux.carry(reader, writer))
    writing = [asyncio.create_task(client.mux.stream().write(bytes(WINDOW))) for _ in range(200)]
    await asyncio.wait(writing)  # 51 MB wait now
    asking = asyncio.create_task(client.mux.ask("kill", {}, 20))
    far, answering = await asyncio.open_unix_connection(sock=theirs)
    splitter, before = FrameSplitter(), 0
    while True:
        frames = list(splitter.feed(await far.read(1 << 16)))
        asks = [at for at, frame in enumerate(frames) if frame.kind is FrameKind.ASK]
        before += asks[0] if asks else len(frames)
        if asks:
            break
    taken_by_the_socket = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // PIECE
    assert before <= taken_by_the_socket + 4
    answering.write(Frame(FrameKind.ANSWER, 1, encode_json({"return": "killed"})).encode())
    assert await asking == "killed"
    carrying.cancel()
    await asyncio.gather(carrying, return_exceptions=True)
    await client.mux.aclose()
    writer.transport.abort()
    answering.transport.abort()


async def test_a_reader_that_stops_blocks_only_its_stream() -> None:
    async with connected() as ends:
        slow, quick = ends.client.mux.stream(), ends.client.mux.stream()
        stuck = asyncio.create_task(slow.write(bytes(3 * WINDOW)))
        far = ends.agent.mux.stream(quick.number)
        for _ in range(8):
            writing = asyncio.create_task(quick.write(bytes(WINDOW)))
            left = WINDOW
            while left:
                left -= len((await far.read()).data)
            await writing
        assert await ends.client.mux.ask("echo", {"value": 1}, 20) == 1
        assert not stuck.done()
        slow_far, left = ends.agent.mux.stream(slow.number), 3 * WINDOW
        while left:
            left -= len((await slow_far.read(9999)).data)
        await stuck


async def test_a_peer_that_sends_more_than_the_window_loses_its_session() -> None:
    stream = WireStream(1, lambda *_: None, lambda _: None, lambda _: None)
    for _ in range(WINDOW // PIECE):
        stream.receive(Frame(FrameKind.DATA, 1, bytes(PIECE)))
    with pytest.raises(FrameError, match="more than its window"):
        stream.receive(Frame(FrameKind.DATA, 1, b"x"))
    stream = WireStream(1, lambda *_: None, lambda _: None, lambda _: None)
    stream.receive(Frame(FrameKind.END, 1, b""))
    with pytest.raises(FrameError, match="goes on after its end"):
        stream.receive(Frame(FrameKind.DATA, 1, b"x"))


async def test_a_stream_refuses_to_write_what_cannot_be_sent() -> None:
    async with connected() as ends:
        stream = ends.client.mux.stream()
        with pytest.raises(ValueError, match="needs a byte"):
            await stream.write(b"", hold=1)
        stream.end()
        stream.end()
        with pytest.raises(ValueError, match="was ended"):
            await stream.write(b"x")
        stream.reset("No more.")
        stream.reset("Again.")
        with pytest.raises(Unreachable, match=r"No more\."):
            await stream.read()
        far = ends.agent.mux.stream(stream.number)
        with pytest.raises(Unreachable, match=r"No more\."):
            await far.write(bytes(2 * WINDOW))
        await until(lambda: not ends.client.mux._resetting)
        assert not ends.client.mux._streams and not ends.agent.mux._streams

"""A session survives its connections: cut after every single frame, everything happens once.

A scripted talk uses every kind of frame in both directions. It is run once to count its frames,
then once for each of them with a cut right after it, and with half of the next frame arriving.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter

import pytest
from support.wires import Cutter, Ends, WireEnd, until

from coloctl.errors import HostOutOfReach, Unreachable
from coloctl.host.wire.frames import PIECE, FrameError, FrameKind, FrameSplitter
from coloctl.host.wire.mux import WAITING_MAX
from coloctl.host.wire.resend import KEPT_MAX, Unacknowledged
from coloctl.host.wire.stream import WireStream

pytestmark = pytest.mark.unit

BYTES = bytes(range(251)) * 1100  # 276,100: more than a window
LONG = "x" * 40_000  # of three pieces


async def read_all(stream: WireStream) -> tuple[bytes, list[tuple[int, int]]]:
    """Read to the end; return the bytes, and each hold with the position after its byte."""
    data, holds = bytearray(), []
    while (chunk := await stream.read()).data:
        data += chunk.data
        if chunk.hold is not None:
            holds.append((len(data), chunk.hold))
    return bytes(data), holds


async def send_all(stream: WireStream) -> None:
    """Write the bytes with a hold after the first, in the middle, and with the last one."""
    await stream.write(BYTES[:1], hold=1)
    await stream.write(BYTES[1:100_000], hold=2)
    await stream.write(BYTES[100_000:], hold=3)
    stream.end()


async def ask_and_push(ends: Ends) -> None:
    """Ask in both directions, once in many pieces, and push from both ends between."""
    for number in range(3):
        assert await ends.client.mux.ask("echo", {"value": number}, 20) == number
        ends.agent.mux.push("death", {"n": number})
        ends.client.mux.push("note", {"n": number, "text": LONG})
        ends.agent.mux.beat({"t": number, "text": LONG})
        ends.client.mux.beat({"t": number})
    assert await ends.client.mux.ask("echo", {"value": LONG}, 20) == LONG
    assert await ends.agent.mux.ask("echo", {"value": "back"}, 20) == "back"


async def cancel_one(ends: Ends) -> None:
    """Ask for what does not end, and cancel it."""
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ends.client.mux.ask("wait", {}, 20))
        await until(lambda: any(do == "wait" for do, _ in ends.agent.asked))
        asking.cancel()
        await until(lambda: ends.agent.cancelled)


async def reset_one(ends: Ends) -> None:
    """Reset a stream whose reader waits at the other end."""
    stream = ends.agent.mux.stream()
    with contextlib.suppress(Unreachable):
        await stream.write(b"some")
    far = ends.client.mux.stream(stream.number)
    assert (await far.read()).data == b"some"
    stream.reset("It is gone.")
    with pytest.raises(Unreachable, match="It is gone"):
        await far.read()


async def talk(ends: Ends) -> None:
    """Hold the whole talk, and check that each part of it happened once."""
    near = ends.client.mux.stream()
    far = ends.agent.mux.stream(near.number)
    async with asyncio.TaskGroup() as group:
        there, back = (group.create_task(read_all(stream)) for stream in (far, near))
        for stream in (near, far):
            group.create_task(send_all(stream))
        for part in (ask_and_push, cancel_one, reset_one):
            group.create_task(part(ends))
    expected = (BYTES, [(1, 1), (100_000, 2), (len(BYTES), 3)])
    assert there.result() == back.result() == expected
    await until(lambda: len(ends.client.pushed) == 3 and len(ends.agent.pushed) == 3)
    assert [document["n"] for _, document in ends.client.pushed] == [0, 1, 2]
    assert [document["n"] for _, document in ends.agent.pushed] == [0, 1, 2]
    asked = Counter((do, str(arguments.get("value"))) for do, arguments in ends.agent.asked)
    assert asked == Counter(
        [("echo", "0"), ("echo", "1"), ("echo", "2"), ("echo", LONG), ("wait", "None")]
    )
    assert len(ends.client.asked) == 1 and ends.agent.cancelled == ["wait"]
    assert not ends.client.unclaimed and not ends.agent.unclaimed


async def talk_over(ends: Ends, cutters: list[Cutter]) -> int:
    """Hold the talk, over a new connection after each cut; return the number of connections."""
    talking = asyncio.create_task(talk(ends))
    count = 0
    try:
        while not talking.done():
            await ends.connect(cutters.pop(0) if cutters else None)
            count += 1
            ended = asyncio.create_task(ends.ended())
            await asyncio.wait({talking, ended}, return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                await ends.cut()
            await ended
        await talking
    finally:
        talking.cancel()
        await ends.aclose()
    return count


async def test_each_frame_may_be_the_last_of_a_connection() -> None:
    whole = Cutter()
    assert await talk_over(Ends(), [whole]) == 1
    assert whole.kinds == set(FrameKind) - {FrameKind.HELLO, FrameKind.BYE}
    for limit in range(whole.count - 10):  # how beats and acknowledgements fall is not fixed
        for torn in (False, True):
            try:
                async with asyncio.timeout(30):
                    assert await talk_over(Ends(), [Cutter(limit, torn=torn)]) == 2
            except BaseException as error:
                error.add_note(f"The connection was cut after {limit} frames, torn: {torn}.")
                raise


@pytest.mark.parametrize("every", [1, 2, 5])
async def test_a_session_survives_many_cuts(every: int) -> None:
    async with asyncio.timeout(120):
        cutters = [Cutter(every, torn=number % 2 == 0) for number in range(12)]
        assert await talk_over(Ends(), cutters) == 13


async def test_a_newer_connection_takes_over_from_one_that_still_stands() -> None:
    """What lies unread in the older connection comes once, over the newer one."""
    ends = Ends()
    talking = asyncio.create_task(talk(ends))
    connections = 0
    async with asyncio.timeout(60):
        while not talking.done():
            await ends.connect()
            connections += 1
            for _ in range(connections):
                await asyncio.sleep(0)
            if connections < 60:
                await ends.abandon()
            else:
                await talking
    await talking
    assert connections > 3
    await ends.aclose()


async def test_after_any_frame_a_session_can_be_forgotten_instead() -> None:
    """Nothing waits for ever, and the next session knows nothing of the one before."""
    for limit in range(40):
        ends = Ends()
        await ends.connect(Cutter(limit))
        talking = asyncio.create_task(talk(ends))
        await ends.ended()
        for end in (ends.client, ends.agent):
            end.mux.forget("The agent is another one.")
            end.mux.session = "new"
        async with asyncio.timeout(30):
            with pytest.raises((BaseExceptionGroup, HostOutOfReach, Unreachable)):
                await talking
        await ends.connect()
        assert await ends.client.mux.ask("echo", {"value": "again"}, 20) == "again"
        assert (ends.client.mux.received, ends.agent.mux.received) == (1, 1)
        await ends.aclose()


def test_frames_are_kept_until_they_are_acknowledged() -> None:
    kept = Unacknowledged()
    for frame in (b"a", b"b", b"c"):
        kept.add(frame)
    kept.acknowledge(2)
    assert kept.rest() == (b"c",)
    assert [kept.reaches(received) for received in (1, 2, 3, 4)] == [False, True, True, False]
    kept.acknowledge(1)
    assert kept.rest() == (b"c",)
    with pytest.raises(FrameError, match="more than were sent"):
        kept.acknowledge(4)
    assert not kept.full
    kept.add(bytes(KEPT_MAX))
    assert kept.full


async def test_nothing_counted_is_sent_while_too_much_is_unacknowledged() -> None:
    """The peer reads and acknowledges nothing; beats go on, and what is kept stays bounded."""
    client = WireEnd(odd=True)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    carrying = asyncio.create_task(client.mux.carry(reader, writer))
    for number in range(300):
        client.mux.push("note", {"n": number, "text": "x" * 30_000})
    far, _ = await asyncio.open_unix_connection(sock=theirs)
    counted = size = beats = 0
    splitter = FrameSplitter()
    while beats < 3:
        client.mux.beat({})
        for frame in splitter.feed(await far.read(1 << 16)):
            beats += size >= KEPT_MAX and frame.kind is FrameKind.BEAT
            if frame.kind is FrameKind.PUSH:
                counted += 1
                size += len(frame.encode())
    assert KEPT_MAX <= size < KEPT_MAX + PIECE + 100
    carrying.cancel()
    await asyncio.gather(carrying, return_exceptions=True)
    await client.mux.aclose()
    writer.transport.abort()
    theirs.close()


async def test_a_session_with_too_much_to_send_is_given_up() -> None:
    client = WireEnd(odd=True)
    asking = asyncio.create_task(client.mux.ask("echo", {}, 20))
    await asyncio.sleep(0)
    client.mux.session = "one"
    for _ in range(WAITING_MAX // (1 << 20) + 2):
        client.mux.push("note", {"text": "x" * (1 << 20)})
    with pytest.raises(HostOutOfReach, match="64 MiB wait to be sent") as lost:
        await asking
    assert client.mux.session == "" and not lost.value.sent

"""A session: requests, pushes, beats and streams between two ends, over a real socketpair."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping
from typing import Any

import pytest
from support.wires import WireEnd, connected, until

from coloctl.errors import ColoctlError, HostOutOfReach, PreconditionFailed, Unreachable
from coloctl.host.wire.frames import MESSAGE_MAX, Frame, FrameKind, encode_json
from coloctl.host.wire.mux import UNATTACHED_MAX
from coloctl.host.wire.requests import _Ask

pytestmark = pytest.mark.unit


async def test_an_ask_is_answered_in_either_direction() -> None:
    async with connected() as ends:
        assert await ends.client.mux.ask("echo", {"value": [1, "x"]}, 5) == [1, "x"]
        assert await ends.agent.mux.ask("echo", {"value": None}, 5) is None


async def test_an_error_keeps_its_class_its_sentence_and_its_hint() -> None:
    async with connected() as ends:
        with pytest.raises(PreconditionFailed, match=r"It does not hold\.") as refused:
            await ends.client.mux.ask("refuse", {}, 5)
        assert refused.value.hint == "make it hold"
        with pytest.raises(ColoctlError, match="fail failed: RuntimeError: a defect"):
            await ends.client.mux.ask("fail", {}, 5)


async def test_a_thousand_asks_at_once_get_their_own_answers() -> None:
    async with connected() as ends:
        answers = await asyncio.gather(
            *(ends.client.mux.ask("echo", {"value": number}, 20) for number in range(1000))
        )
        assert answers == list(range(1000))


async def test_a_cancelled_ask_is_cancelled_at_the_other_end() -> None:
    async with connected() as ends:
        asking = asyncio.create_task(ends.client.mux.ask("wait", {}, 20))
        await until(lambda: ends.agent.asked)
        asking.cancel()
        await until(lambda: ends.agent.cancelled)
        assert asking.cancelled() and not ends.client.unclaimed


async def test_the_answer_that_came_too_late_is_undone() -> None:
    async with connected() as ends:
        asking = asyncio.create_task(ends.client.mux.ask("stubborn", {}, 20))
        await until(lambda: ends.agent.asked)
        asking.cancel()
        await until(lambda: ends.client.unclaimed)
        assert ends.client.unclaimed == [("stubborn", "done all the same")]


async def test_bytes_and_holds_arrive_in_order_and_the_ends_are_passed_on() -> None:
    async with connected() as ends:
        ours = ends.client.mux.stream()
        await ours.write(b"before ")
        await ours.write(b"with", hold=7)
        await ours.write(b"after")
        ours.end()
        theirs = ends.agent.mux.stream(ours.number)
        chunks = []
        while (chunk := await theirs.read()).data:
            chunks.append(chunk)
        assert b"".join(chunk.data for chunk in chunks) == b"before withafter"
        at = next(n for n, chunk in enumerate(chunks) if chunk.hold == 7)
        assert b"".join(chunk.data for chunk in chunks[: at + 1]) == b"before with"
        await theirs.write(b"answer")
        theirs.end()
        assert (await ours.read()).data == b"answer"
        assert (await ours.read()).data == b""


async def test_a_stream_that_was_reset_before_it_was_attached_is_over() -> None:
    async with connected() as ends:
        theirs = ends.agent.mux.stream()
        await theirs.write(b"greeting")
        theirs.reset("The QEMU is gone.")
        await ends.agent.mux.ask("echo", {}, 5)
        await ends.client.mux.ask("echo", {}, 5)
        with pytest.raises(Unreachable, match="The QEMU is gone"):
            await ends.client.mux.stream(theirs.number).read()
            await ends.client.mux.stream(theirs.number).read()


async def test_pushes_and_beats_arrive() -> None:
    async with connected() as ends:
        await ends.agent.mux.ask("echo", {}, 5)
        ends.agent.mux.push("death", {"hold": 3})
        ends.agent.mux.beat({"t": 1})
        await until(lambda: ends.client.pushed and ends.client.beats)
        assert ends.client.pushed == [("death", {"hold": 3, "of": "death"})]


async def test_forgetting_ends_all_that_was_under_way() -> None:
    async with connected() as ends:
        asking = asyncio.create_task(ends.client.mux.ask("wait", {}, 20))
        stream = ends.client.mux.stream()
        await until(lambda: ends.agent.asked)
        ends.client.mux.forget("The machine is another one.")
        with pytest.raises(HostOutOfReach, match="another one") as lost:
            await asking
        assert lost.value.sent
        with pytest.raises(Unreachable, match="another one"):
            await stream.read()
        assert await ends.carrying[0] == "The machine is another one."


async def test_an_ask_that_never_left_is_withdrawn() -> None:
    async with connected() as ends:
        await ends.cut()
        ends.client.mux.grace_s = 0.01
        with pytest.raises(HostOutOfReach, match=r"echo had no answer from the other") as late:
            await ends.client.mux.ask("echo", {"value": 1}, 0.01)
        assert not late.value.sent
        await ends.connect()
        assert await ends.client.mux.ask("echo", {"value": 2}, 5) == 2
        assert ends.agent.asked == [("echo", {"value": 2})]


async def test_an_ask_that_is_late_is_cancelled_and_may_yet_happen() -> None:
    async with connected() as ends:
        ends.client.mux.grace_s = 0.01
        with pytest.raises(HostOutOfReach, match=r"wait had no answer") as late:
            await ends.client.mux.ask("wait", {}, 0.01)
        assert late.value.sent
        await until(lambda: ends.agent.cancelled)


async def test_a_request_that_is_cancelled_before_it_began_is_answered() -> None:
    """Its ASK and its CANCEL come with one read: the task never runs."""
    async with connected() as ends:
        await ends.cut()
        asking = [asyncio.create_task(ends.client.mux.ask("echo", {}, 20)) for _ in range(2)]
        await asyncio.sleep(0)
        raw = [ends.client.mux._next() for _ in range(2)]
        assert all(raw)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        await ends.connect()
        await until(lambda: not ends.client.mux._asks._asks)
        assert not ends.agent.asked and not ends.client.unclaimed


async def test_an_answer_that_came_in_the_same_instant_as_the_cancel_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected() as ends:
        asking = asyncio.create_task(ends.client.mux.ask("wait", {"value": "a hold"}, 20))
        await until(lambda: ends.agent.asked)
        asks, receive = ends.client.mux._asks, ends.client.mux._asks.receive

        def receive_and_cancel(number: int, document: Mapping[str, Any]) -> None:
            receive(number, document)
            asking.cancel()

        monkeypatch.setattr(asks, "receive", receive_and_cancel)
        ends.agent.gate.set()
        await asyncio.wait([asking])
        assert asking.cancelled() and ends.client.unclaimed == [("wait", "a hold")]


async def test_what_is_too_long_for_one_message_is_an_error_at_both_ends() -> None:
    async with connected() as ends:
        long = "x" * MESSAGE_MAX
        with pytest.raises(ColoctlError, match=r"The request echo has .* bytes, too many for one"):
            await ends.client.mux.ask("echo", {"value": long}, 5)
        with pytest.raises(ColoctlError, match=r"The answer to long has .* bytes, too many"):
            await ends.client.mux.ask("long", {}, 5)
        assert await ends.client.mux.ask("echo", {"value": 1}, 5) == 1


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"Last login: Sun Nov 29\n", "no frame of this protocol"),
        (Frame(FrameKind.HELLO, 0, b"{}").encode(), "HELLO .* out of place"),
        (Frame(FrameKind.ANSWER, 9, b'{"return": 1}').encode(), "out of place or is damaged"),
        (Frame(FrameKind.ASK, 2, b'{"do": ').encode(), "not valid JSON"),
        (Frame(FrameKind.PUSH, 0, b"[1]").encode(), "no JSON object"),
        (Frame(FrameKind.ACK, 0, (9).to_bytes(8, "big")).encode(), "more than were sent"),
    ],
)
async def test_a_connection_on_which_nonsense_comes_ends_its_session(raw: bytes, why: str) -> None:
    client = WireEnd(odd=True)
    client.mux.session = "one"
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    theirs.sendall(raw)
    async with asyncio.timeout(20):
        assert re.search(why, await client.mux.carry(reader, writer))
    assert client.mux.session == "" and client.mux.received == 0
    writer.transport.abort()
    theirs.close()


@pytest.mark.parametrize(
    "document", [{}, {"do": "echo"}, {"do": "echo", "with": 1, "deadline_s": 1}, {"with": {}}]
)
async def test_a_damaged_request_is_answered_by_a_sentence(document: dict[str, object]) -> None:
    async with connected() as ends:
        ends.client.mux._send(FrameKind.ASK, 77, encode_json(document))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ends.client.mux._asks._asks[77] = _Ask("echo", future)
        with pytest.raises(ColoctlError, match=r"failed: (KeyError|TypeError): .*\.$"):
            await future


async def test_a_session_that_was_ended_by_the_other_end_is_known_as_ended() -> None:
    async with connected() as ends:
        assert ends.agent.mux.farewell is None
        ends.client.mux.bye(keep=True)
        assert await ends.carrying[1] == "The session was ended by the other end."
        assert ends.agent.mux.farewell == {"keep": True}


async def test_forgetting_in_the_middle_of_a_read_leaves_the_rest_unread() -> None:
    async with connected() as ends:
        await ends.client.mux.ask("echo", {}, 5)
        client = ends.client.mux
        client._pushed = lambda of, document: client.forget("Enough.")
        for _ in range(3):
            ends.agent.mux.push("note", {})
        assert await ends.carrying[0] == "Enough."
        assert client.received == 0 and not ends.client.pushed


async def test_a_thousand_streams_that_no_task_attaches_to_are_not_all_remembered() -> None:
    async with connected() as ends:
        for _ in range(UNATTACHED_MAX + 5):
            stream = ends.agent.mux.stream()
            await stream.write(b"x")
            stream.reset("It is over.")
        await ends.agent.mux.ask("echo", {}, 20)
        await until(lambda: not ends.agent.mux._resetting)
        assert len(ends.client.mux._unattached) == UNATTACHED_MAX
        assert not ends.client.mux._streams and not ends.agent.mux._streams

"""A session: requests, pushes, beats and streams between two ends, over a real socketpair."""

from __future__ import annotations

import asyncio

import pytest
from support.wires import connected, until

from coloctl.errors import ColoctlError, HostOutOfReach, PreconditionFailed, Unreachable

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

"""However a wait for the first of several, or for all of them, ends, none of them runs on."""

from __future__ import annotations

import asyncio

import pytest

from coloctl.tasks import first_of, side_by_side

pytestmark = pytest.mark.unit


class Waiter:
    """Waits for ever, and notes that it was cancelled and that its cleanup ran to its end."""

    def __init__(self) -> None:
        self.cleaned = False

    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned = True


async def answer() -> int:
    return 7


async def fail() -> None:
    raise ValueError("no")


async def test_the_first_wins_and_the_others_are_cancelled() -> None:
    slow = Waiter()
    async with first_of(slow.wait(), answer()) as (waiting, answered):
        assert answered.result() == 7
        assert not waiting.done()
    assert waiting.cancelled()
    assert slow.cleaned


async def test_an_error_of_the_first_is_read_from_its_future() -> None:
    slow = Waiter()
    async with first_of(fail(), slow.wait()) as (failed, _):
        with pytest.raises(ValueError, match="no"):
            failed.result()
    assert slow.cleaned


async def test_an_error_of_the_block_leaves_none_running() -> None:
    slow = Waiter()
    with pytest.raises(KeyError):
        async with first_of(answer(), slow.wait()):
            raise KeyError("the block")
    assert slow.cleaned


async def test_cancelled_while_it_waits_it_leaves_none_running() -> None:
    one, other = Waiter(), Waiter()

    async def wait() -> None:
        async with first_of(one.wait(), other.wait()):
            raise AssertionError("none was done")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one.cleaned
    assert other.cleaned


async def test_after_the_time_none_is_done() -> None:
    slow = Waiter()
    async with first_of(slow.wait(), within_s=0.001) as (waiting,):
        assert not waiting.done()
    assert slow.cleaned


async def test_works_side_by_side_all_end_and_the_first_error_in_their_order_is_raised() -> None:
    ended: list[str] = []

    async def work(name: str, turns: int, error: Exception | None = None) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        ended.append(name)
        if error is not None:
            raise error
        return name

    assert await side_by_side(work("one", 3), work("two", 1)) == ("one", "two")
    assert ended == ["two", "one"]
    assert await side_by_side() == ()
    with pytest.raises(ValueError, match="slow"):
        await side_by_side(
            work("a", 5, ValueError("slow")), work("b", 1, KeyError("quick")), work("c", 9)
        )
    assert ended[2:] == ["b", "a", "c"]


async def test_works_side_by_side_are_cancelled_with_their_caller_and_awaited() -> None:
    cleaned: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    caller = asyncio.create_task(side_by_side(work(1), work(2)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert sorted(cleaned) == [1, 2]

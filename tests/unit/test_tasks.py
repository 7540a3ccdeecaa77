"""However a wait for the first of several ends, none of them runs on."""

from __future__ import annotations

import asyncio

import pytest

from coloctl.tasks import first_of

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

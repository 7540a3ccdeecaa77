"""`Deadline.poll` asks at once, in its rhythm, and once more at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from operator import not_

import pytest
from support.fakeclock import FakeClock

from coloctl.clock import Deadline

pytestmark = pytest.mark.unit


def asked(answers: list[str], within_s: float, **how: object) -> tuple[str, list[float]]:
    """Poll every second on a clock of the test; return the answer, and when it was asked for."""
    clock, moments, left = FakeClock(), list[float](), iter(answers)

    async def ask() -> str:
        moments.append(clock.now())
        return next(left)

    async def poll() -> str:
        deadline = Deadline(within_s, clock)
        waiting = asyncio.ensure_future(deadline.poll(ask, 1.0, **how))
        while not waiting.done():
            clock.advance(0.5)
            await asyncio.sleep(0)
        return waiting.result()

    return asyncio.run(poll()), moments


def test_the_first_true_answer_ends_it() -> None:
    answer, moments = asked(["", "", "yes", "never"], 10)
    assert answer == "yes"
    assert len(moments) == 3


def test_the_last_answer_is_from_the_end() -> None:
    answer, moments = asked(["a", "b", "c", "d", ""], 3, done=not_)
    assert answer == "d"
    assert moments[-1] - moments[0] >= 3


def test_no_time_at_all_is_one_question() -> None:
    answer, moments = asked(["no", "yes"], 0, done=lambda answer: answer == "yes")
    assert (answer, len(moments)) == ("no", 1)


def test_it_blocks_where_no_loop_runs() -> None:
    answers: Iterator[int] = iter([0, 0, 7])
    assert Deadline(5).poll_blocking(lambda: next(answers), 0.001) == 7
    assert Deadline(0.01).poll_blocking(lambda: 0, 0.002) == 0

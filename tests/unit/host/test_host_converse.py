"""Lines go both ways between us and a program on a host, and nothing of it stays."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coloctl.errors import DeadlineMissed, PreconditionFailed, Unreachable
from coloctl.host.local import LocalHost
from coloctl.host.process import read_stat

pytestmark = pytest.mark.unit

ECHO = [
    sys.executable,
    "-c",
    "import sys\nfor line in sys.stdin: print('>' + line, end='', flush=True)",
]
DEADLINE_S = 20.0


async def test_lines_go_both_ways() -> None:
    async with LocalHost() as host, host.converse(ECHO) as program:
        for line in ("one", "zwei: ü", "x" * 50_000):
            await program.say(line, DEADLINE_S)
            assert await program.hear(DEADLINE_S) == f">{line}"


async def test_the_end_of_a_program_is_heard_with_its_last_words() -> None:
    async with LocalHost() as host:
        script = "echo one; echo half | tr -d '\\n'; echo alas >&2; exit 3"
        async with host.converse(["sh", "-c", script]) as program:
            assert await program.hear(DEADLINE_S) == "one"
            assert await program.hear(DEADLINE_S) is None  # half a line is none
            assert program.last_words() == "alas\n"
            with pytest.raises(Unreachable):
                while True:  # the kernel takes some before it notices
                    await program.say("still there?", DEADLINE_S)


async def test_a_line_that_does_not_come_in_time_is_not_lost() -> None:
    async with LocalHost() as host, host.converse(ECHO) as program:
        with pytest.raises(DeadlineMissed):
            await program.hear(0.05)
        hearing = asyncio.create_task(program.hear(DEADLINE_S))
        await asyncio.sleep(0)
        hearing.cancel()
        await asyncio.wait([hearing])
        await program.say("late", DEADLINE_S)
        assert await program.hear(DEADLINE_S) == ">late"


async def test_a_program_that_does_not_listen_keeps_its_speaker_waiting_in_bounds() -> None:
    async with LocalHost() as host, host.converse(["sleep", "300"]) as program:
        with pytest.raises(DeadlineMissed):
            while True:
                await program.say("x" * 10_000, 0.1)


@pytest.mark.parametrize("how", ["left", "cancelled"])
async def test_the_program_and_its_children_are_gone_behind_the_context(
    tmp_path: Path, how: str
) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 300 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; echo up; wait"

    async def converse(host: LocalHost) -> None:
        async with host.converse(["sh", "-c", script]) as program:
            assert await program.hear(DEADLINE_S) == "up"
            if how == "cancelled":
                await program.hear(DEADLINE_S)

    async with LocalHost() as host:
        talking = asyncio.create_task(converse(host))
        if how == "cancelled":
            await until(pids.exists)
            talking.cancel()
        await asyncio.wait([talking])
        assert talking.cancelled() is (how == "cancelled")
        await until(lambda: not any(map(runs, map(int, pids.read_text().split()))))


def runs(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state != "Z"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_program_that_is_not_there_is_a_sentence_and_nothing_leaks() -> None:
    async def converse(host: LocalHost) -> None:
        with pytest.raises(PreconditionFailed, match="no-such-program"):
            async with host.converse(["no-such-program"]):
                pass
        async with host.converse(ECHO) as program:
            await program.say("x", DEADLINE_S)

    async with LocalHost() as host:
        await converse(host)
        await asyncio.sleep(0)
        before = sorted(Path("/proc/self/fd").iterdir())
        await converse(host)
        await asyncio.sleep(0)
        assert sorted(Path("/proc/self/fd").iterdir()) == before

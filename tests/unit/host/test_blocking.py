"""Work that a disk may hold up has a thread of its own, used again, and waits for no other."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from coloctl.host import blocking
from coloctl.host.blocking import READY, aside, keep_ready

pytestmark = pytest.mark.unit


def _threads() -> int:
    return sum(one.name == "aside" for one in threading.enumerate())


async def waiting(count: int) -> None:
    """Wait until so many threads wait for jobs at least."""
    async with asyncio.timeout(60):
        while len(blocking._waiting) < count:  # noqa: ASYNC110 - threads set no event
            await asyncio.sleep(0.001)


async def test_a_thread_is_used_again_and_errors_come_back() -> None:
    keep_ready()
    await waiting(READY)
    before = set(blocking._waiting)
    used = {await aside(threading.current_thread) for _ in range(3 * READY)}
    assert used <= before

    def fail() -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        await aside(fail)
    await waiting(READY)
    assert await aside(lambda: 5) == 5


async def test_jobs_that_hang_hold_no_other_up_and_what_is_too_much_ends() -> None:
    back = threading.Event()
    hung = [asyncio.create_task(aside(back.wait)) for _ in range(3 * READY)]
    await asyncio.sleep(0)
    assert await aside(lambda: 7) == 7
    hung[0].cancel()  # no task waits for its thread
    with pytest.raises(asyncio.CancelledError):
        await hung[0]
    back.set()
    assert await asyncio.gather(*hung[1:]) == [True] * (len(hung) - 1)
    async with asyncio.timeout(60):
        while _threads() > 2 * READY:  # noqa: ASYNC110 - threads set no event
            await asyncio.sleep(0.001)
    assert await aside(lambda: 8) == 8


#: Forks while threads wait for jobs, and does a job in the child.
FORKS = """
import asyncio, os, time
from coloctl.host import blocking
blocking.keep_ready()
while len(blocking._waiting) < blocking.READY:
    time.sleep(0.001)
pid = os.fork()
if pid == 0:
    done = asyncio.run(asyncio.wait_for(blocking.aside(lambda: 5), 30))
    os._exit(done)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_process_that_is_forked_starts_threads_of_its_own() -> None:
    words = [sys.executable, "-W", "ignore", "-c", FORKS]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"

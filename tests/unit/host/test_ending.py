"""A process that dies is noticed by its threads; the end of a thread alone is no sign."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from support.livings import adopted_child

from coloctl.host import ending, process
from coloctl.host.ending import ThreadWatch, is_dying
from coloctl.host.process import LocalProcess
from coloctl.host.records import Death

pytestmark = pytest.mark.unit

#: Holds memory whose end takes the kernel a while, and a thread that ends when it is told to.
PROGRAM = """
import sys, threading
memory = bytearray(64 << 20)
over = threading.Event()
threads = [threading.Thread(target=over.wait), threading.Thread(target=sys.stdin.readline)]
for thread in threads[:int(sys.argv[1])]:
    thread.daemon = True
    thread.start()
print(flush=True)
if len(sys.argv) > 2:
    over.set()
for thread in threads[:1]:
    thread.join()
    print(flush=True)
over.clear()
over.wait()
"""

#: pidfds of threads came with Linux 6.9.
OF_THREADS = tuple(int(one) for one in os.uname().release.split(".")[:2]) >= (6, 9)


running = partial(adopted_child, PROGRAM)


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A line for each process whose memory is freed; what frees it is the real thing."""
    done: list[int] = []

    def free(pidfd: int) -> None:
        done.append(pidfd)
        ending.free(pidfd)

    monkeypatch.setattr(process, "free", free)
    return done


async def wait(held: LocalProcess) -> Death:
    async with asyncio.timeout(60):
        return await held.wait()


async def test_one_that_others_kill_is_noticed_once_and_its_death_is_the_kernels(
    freed: list[int],
) -> None:
    with running("2") as (held, child):
        waits = [asyncio.create_task(wait(held)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not is_dying(child.pid) and not freed
        child.kill()
        deaths = [await one for one in waits]
        assert not held.alive() and {death.pid for death in deaths} == {child.pid}
    assert len(freed) <= 1  # the whole process may end before it is looked at


@pytest.mark.parametrize("_", range(8))
def test_who_loses_a_connection_by_an_end_finds_the_process_dying_or_dead(_: int) -> None:
    """The kernel marks each thread before it closes the files, and frees the memory after that."""
    with running("2") as (held, child):
        assert not held.dying()
        child.kill()
        assert child.stdout is not None and child.stdout.read() == b""  # its last end is closed
        assert held.dying() or not held.alive()
        child.wait()
        assert not held.alive() and not held.dying()


async def test_a_hold_that_was_closed_and_a_process_that_others_hold_show_no_end() -> None:
    with running("1") as (held, _):
        assert not held.seen_dying
        held.close()
        assert not held.dying() and not held.seen_dying


@pytest.mark.skipif(not OF_THREADS, reason="the kernel shows no end of a thread")
async def test_the_end_of_a_thread_is_no_sign_that_its_process_dies(freed: list[int]) -> None:
    with running("1", "then the thread ends") as (held, child):
        waiting = asyncio.create_task(wait(held))
        assert child.stdout is not None
        await asyncio.to_thread(child.stdout.readline)
        await asyncio.sleep(3 * process.LOOK_AGAIN_S)
        assert not waiting.done() and not freed and not is_dying(child.pid)
        child.kill()
        await waiting


@pytest.mark.skipif(not OF_THREADS, reason="the kernel shows no end of a thread")
def test_a_thread_that_ended_is_seen_once_and_others_are_watched_then() -> None:
    with running("2") as (_, child):
        pidfd = os.pidfd_open(child.pid)
        with ThreadWatch(child.pid, pidfd) as watch:
            assert not watch.look()
            assert len(watch._threads) == 2
            assert child.stdin is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            while len(watch._threads) == 2:
                assert not watch.look()
            child.kill()
            child.wait()
            assert not watch.look()  # there is no such process any more
        os.close(pidfd)


def test_no_memory_of_a_process_that_lives_is_freed() -> None:
    with running("1") as (held, child):
        before = int(Path(f"/proc/{child.pid}/statm").read_bytes().split()[1])
        ending.free(held._pidfd)
        for thread in [one for one in ending.threading.enumerate() if one.name == "free"]:
            thread.join()
        now = int(Path(f"/proc/{child.pid}/statm").read_bytes().split()[1])
        assert now >= before  # it may grow
        assert held.alive()


async def test_one_that_coloctl_kills_ends_sooner_in_the_same_way(freed: list[int]) -> None:
    with running("2") as (held, _):
        killing = asyncio.create_task(held.kill(60))
        await asyncio.sleep(0)
        assert held.seen_dying or not held.alive()
        proof = await killing
        assert proof.how == "sigkill" and not held.alive() and not held.seen_dying
        assert len(freed) == 1
        held.signal(signal.SIGKILL)
        assert len(freed) == 1


@pytest.mark.parametrize("fails", ["pidfd_open", "listdir"])
async def test_where_the_kernel_shows_no_threads_a_death_is_reported_all_the_same(
    monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    with running("2") as (held, child):

        def refuse(*_: object) -> None:
            raise OSError("not here")

        monkeypatch.setattr(ending.os, fails, refuse)
        waiting = asyncio.create_task(wait(held))
        await asyncio.sleep(0.01)
        child.kill()
        assert (await waiting).pid == child.pid


def test_a_process_that_is_gone_is_not_dying() -> None:
    with running("1") as (_, child):
        child.kill()
    assert not is_dying(child.pid)

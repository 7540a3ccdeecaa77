"""A process that runs no more is known as dead before the kernel has freed its memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from support.livings import adopted_child

from coloctl.errors import FencingFailed
from coloctl.host import process, resource_use
from coloctl.host.halted import is_halted, killed_by
from coloctl.host.local import LocalHost
from coloctl.host.process import LocalProcess, identity_of
from coloctl.model.observation import Life

pytestmark = pytest.mark.unit

#: Fills memory, opens the file, starts threads, and ends by itself when it reads a line.
PROGRAM = """
import os, sys, threading, time
filled = bytearray(64 << 20)
filled[::4096] = b"x" * len(filled[::4096])
kept = open(sys.argv[1], "r+b")
for _ in range(3):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
os._exit(7)
"""


running = partial(adopted_child, PROGRAM)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    return path


def test_a_process_that_runs_or_is_stopped_is_not_halted_and_neither_is_a_missing_one(
    file: Path,
) -> None:
    with running(str(file)) as (held, child):
        assert not is_halted(child.pid) and not killed_by(child.pid) and not held.halted()
        child.send_signal(signal.SIGSTOP)
        assert not is_halted(child.pid) and held.life() in {Life.ALIVE, Life.STOPPED}
        child.kill()
        child.wait()
        assert not is_halted(child.pid)  # the kernel has reported its end
        assert held.halted() and held.life() is Life.DEAD


def test_a_thread_that_has_ended_halts_no_process() -> None:
    ended = "import threading; t = threading.Thread(target=int); t.start(); t.join(); input()"
    with subprocess.Popen([sys.executable, "-c", ended], stdin=subprocess.PIPE) as child:
        try:
            assert not is_halted(child.pid)
        finally:
            child.kill()


async def test_one_that_a_signal_ends_is_halted_before_or_when_it_is_gone(file: Path) -> None:
    with running(str(file)) as (held, child):
        early, late = (asyncio.create_task(one) for one in (held.until_halted(), held.wait()))
        await asyncio.sleep(0.01)
        child.kill()
        async with asyncio.timeout(60):
            halt = await early
            assert held.halted() and held.life() is Life.DEAD
            death = await late
        assert halt.at_s <= death.at_s and halt.exit_code in {None, -signal.SIGKILL}
        assert await held.until_halted() == death and not held.alive()


async def test_a_kill_returns_at_the_halt_and_proves_it(file: Path) -> None:
    with running(str(file)) as (held, child):
        async with asyncio.timeout(60):
            proof = await held.halt(30)
            assert (proof.pid, proof.how) == (child.pid, "sigkill")
            assert held.life() is Life.DEAD
            again = await held.halt(30)
            assert again.how == "already-dead"
            await held.wait()
            assert (await held.halt(30)).how == "already-dead"


async def test_one_that_ends_by_itself_is_left_to_the_kernels_report(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalProcess, "_hasten", lambda self: setattr(self, "_hastened", True))
    with running(str(file)) as (held, child):
        waiting = asyncio.create_task(held.until_halted())
        await asyncio.sleep(0.01)
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        async with asyncio.timeout(60):
            death = await waiting
        assert not held.alive() and death == await held.wait()


async def test_a_kill_without_a_halt_is_no_proof(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(str(file)) as (held, child):
        monkeypatch.setattr(process.signals, "pidfd_send_signal", lambda *_: None)
        with pytest.raises(FencingFailed, match="is not gone"):
            await held.halt(0.05)
        assert held.life() is not Life.DEAD and child.poll() is None


async def test_what_a_halted_process_still_has_open_is_not_held_by_others(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it runs, which makes no difference to whose files they are."""
    monkeypatch.setattr(resource_use, "written", lambda image: True)
    async with LocalHost() as host:
        with running(str(file)) as (held, child):
            identity = held.identity
            (told,) = await host.still_held(images=[file], taps=[])
            assert str(child.pid) in told
            assert await host.still_held(images=[file], taps=[], besides=identity) == ()
            strange = identity_of(os.getpid())
            assert await host.still_held(images=[file], taps=[], besides=strange) == (told,)
            child.kill()
            child.wait()
            gone = await host.still_held(images=[file], taps=[], besides=identity)
            assert len(gone) == 1

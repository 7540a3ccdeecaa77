"""Processes: what is dead is proven dead, and nobody else is ever hit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from coloctl.errors import FencingFailed, LaunchError, PreconditionFailed
from coloctl.host import Identity, LocalHost, Process, identity_of, tail
from coloctl.host import process as process_module
from coloctl.host.adopting import adopt
from coloctl.host.launch import discard, with_numbers
from coloctl.model.launch import Launch
from coloctl.model.observation import Life
from coloctl.procfs import machine_id

pytestmark = pytest.mark.unit

SLEEP = ("sleep", "300")


@contextlib.contextmanager
def ended(*processes: Process | None) -> Iterator[None]:
    """Whatever happens inside, these are gone afterwards."""
    try:
        yield
    finally:
        for process in processes:
            if process is not None:
                discard(process)  # type: ignore[arg-type]


async def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def launcher(tmp_path: Path, then: str) -> subprocess.Popen[str]:
    """Another supervisor: launches `sleep`, prints its identity and does ``then``."""
    code = f"""
        import asyncio, json, sys, time
        from dataclasses import asdict
        from pathlib import Path
        from coloctl.host import LocalHost
        from coloctl.model.launch import Launch

        async def main():
            process = await LocalHost().launch(
                Launch({tuple(SLEEP)!r}), stderr=Path({str(tmp_path / "log")!r})
            )
            print(json.dumps(asdict(process.identity)), flush=True)

        asyncio.run(main())
        {then}
    """
    return subprocess.Popen(
        [sys.executable, "-S", "-c", dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def printed_identity(program: subprocess.Popen[str]) -> Identity:
    assert program.stdout is not None
    return Identity(**json.loads(program.stdout.readline()))


async def test_killed_child_gives_proof_and_exit_code(tmp_path: Path) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log", node="a")
        with ended(process):
            before = time.monotonic()
            proof = await process.kill(5)
            assert (proof.pid, proof.start_time) == (
                process.identity.pid,
                process.identity.start_time,
            )
            assert (proof.how, proof.exit_code) == ("sigkill", -signal.SIGKILL)
            assert before <= proof.at_s <= time.monotonic()
            assert not process.alive()
            assert identity_of(process.identity.pid) != process.identity


async def test_stopped_process_is_frozen_and_can_be_killed(tmp_path: Path) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        with ended(process):
            assert process.life() is Life.ALIVE
            assert process.signal(signal.SIGSTOP)
            await until(lambda: process.life() is Life.STOPPED)
            assert process.alive()
            assert process.signal(signal.SIGCONT)
            await until(lambda: process.life() is not Life.STOPPED)
            process.signal(signal.SIGSTOP)
            assert (await process.kill(5)).how == "sigkill"
            assert process.life() is Life.DEAD

        stopped = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        with ended(stopped):
            stopped.signal(signal.SIGSTOP)
            await until(lambda: stopped.life() is Life.STOPPED)
            assert (await stopped.terminate(60)).how == "sigkill"


async def test_already_dead_gives_proof_at_once_and_keeps_its_exit_code(tmp_path: Path) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(("sh", "-c", "exit 7")), stderr=tmp_path / "log")
        death = await process.wait()
        assert death.exit_code == 7
        assert str(death) == f"process {death.pid} ended with exit code 7"
        proof = await process.kill(0.001)
        assert (proof.how, proof.exit_code, proof.at_s) == ("already-dead", 7, death.at_s)
        assert process.signal(signal.SIGSTOP) is False
        assert await process.wait() == death


async def test_reused_pid_is_never_hit(tmp_path: Path) -> None:
    async with LocalHost() as host:
        stranger = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        with ended(stranger):
            pid, start_time = stranger.identity.pid, stranger.identity.start_time
            recorded = Identity(pid, start_time - 1)
            assert await host.adopt(recorded) is None
            proof = await host.kill(recorded, node="a", deadline_s=5)
            assert (proof.how, proof.pid) == ("identity-gone", pid)
            assert stranger.alive()


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1])
def test_pid_that_cannot_be_is_gone(pid: int) -> None:
    assert adopt(Identity(pid, 1)) is None


@pytest.mark.parametrize("boot", ["", "another-boot"])
async def test_process_of_another_machine_is_never_gone(tmp_path: Path, boot: str) -> None:
    """Its boot is another one too, and its number may be free here: neither proves a death."""
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        with ended(process):
            assert process.identity.machine == machine_id()
            for pid in (process.identity.pid, 2**22 - 1):
                elsewhere = replace(
                    process.identity, pid=pid, machine="0" * 32, boot=boot, namespace=""
                )
                assert Identity.from_json(elsewhere.to_json()).machine == "0" * 32
                with pytest.raises(PreconditionFailed, match="recorded on another machine"):
                    await host.adopt(elsewhere)
                with pytest.raises(FencingFailed, match="recorded on another machine"):
                    await host.kill(elsewhere, node="a", deadline_s=5)
            assert process.alive()
            rebooted = replace(process.identity, boot="another-boot")
            assert adopt(rebooted) is None


async def test_process_that_proc_hides_is_no_proof_of_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        with ended(process), monkeypatch.context() as patch:
            patch.setattr(process_module, "read_stat", lambda _: None)
            with pytest.raises(PreconditionFailed, match="does not show"):
                await host.adopt(process.identity)
            with pytest.raises(FencingFailed, match="does not show") as caught:
                await host.kill(process.identity, node="a", deadline_s=5)
            assert caught.value.node == "a"
            assert process.alive()


async def test_adopted_orphan_of_another_supervisor(tmp_path: Path) -> None:
    program = launcher(tmp_path, "")
    identity = printed_identity(program)
    program.communicate(timeout=10)
    assert program.returncode == 0
    async with LocalHost() as host:
        process = await host.adopt(identity, node="b")
        assert process is not None
        with ended(process):
            assert process.argv == SLEEP
            assert process.alive()
            waiting = asyncio.create_task(process.wait())
            proof = await host.kill(identity, node="b", deadline_s=5)
            assert (proof.how, proof.exit_code) == ("sigkill", None)
            assert (await waiting).exit_code is None
            assert str(await waiting) == f"process {identity.pid} is gone"
        assert await host.adopt(identity) is None


async def test_zombie_that_its_parent_does_not_reap_is_dead(tmp_path: Path) -> None:
    program = launcher(tmp_path, "time.sleep(60)")
    try:
        identity = printed_identity(program)
        async with LocalHost() as host:
            proof = await host.kill(identity, node="a", deadline_s=5)
            assert proof.how == "sigkill"
            stat = process_module.read_stat(identity.pid)
            assert stat is not None
            assert stat.state == "Z"
            assert await host.adopt(identity) is None
    finally:
        program.kill()
        program.communicate()


async def test_adopting_our_own_child_leaves_its_exit_status(tmp_path: Path) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        again = await host.adopt(process.identity)
        assert again is not None
        with ended(process, again):
            assert (await again.kill(5)).exit_code == -signal.SIGKILL
            assert (await process.wait()).exit_code == -signal.SIGKILL


async def test_ctrl_c_does_not_reach_a_launched_process(tmp_path: Path) -> None:
    program = launcher(tmp_path, "time.sleep(60)")
    identity = printed_identity(program)
    os.killpg(program.pid, signal.SIGINT)
    program.communicate(timeout=10)
    assert program.returncode != 0
    async with LocalHost() as host:
        process = await host.adopt(identity)
        assert process is not None
        with ended(process):
            assert os.getsid(identity.pid) == identity.pid
            assert process.alive()


async def test_terminate_is_soft_where_that_is_enough_and_hard_where_not(tmp_path: Path) -> None:
    async with LocalHost() as host:
        polite = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        stubborn = await host.launch(
            Launch(("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")),
            stderr=tmp_path / "stubborn",
        )
        with ended(polite, stubborn):
            assert (await polite.terminate(5)).how == "sigterm"
            await until(lambda: tail(tmp_path / "stubborn") == "ready")
            assert (await stubborn.terminate(0.4)).how == "sigkill"


async def test_no_proof_in_time_is_a_fencing_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log", node="b")
        with ended(process), monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
            with pytest.raises(FencingFailed, match="is not gone after") as caught:
                await process.kill(0.05)
            assert caught.value.node == "b"
            assert process.alive()


async def test_foreign_process_is_a_fencing_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log", node="b")
        with ended(process), monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", refuse)
            with pytest.raises(FencingFailed, match="belongs to another user"):
                await process.kill(1)


async def test_cancelled_waiter_leaves_the_others_waiting(tmp_path: Path) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        with ended(process):
            one, two = (asyncio.create_task(process.wait()) for _ in range(2))
            await asyncio.sleep(0)
            one.cancel()
            await asyncio.wait([one])
            await process.kill(5)
            assert (await two).exit_code == -signal.SIGKILL


async def test_a_death_that_nobody_was_told_of_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that is readable, and whose waiter is never woken."""

    async def never(_fd: int) -> None:
        await asyncio.Event().wait()

    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log", node="b")
        with ended(process), monkeypatch.context() as patch:
            patch.setattr(process_module, "until_readable", never)
            proof = await process.kill(30)
            assert proof.how == "sigkill" and not process.alive()


async def test_released_process_lives_on(tmp_path: Path) -> None:
    async with LocalHost() as host:
        process = await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "log")
        process.close()
        with pytest.raises(ValueError, match="was closed"):
            process.alive()
        again = await host.adopt(process.identity)
        assert again is not None
        with ended(again):
            assert again.alive()


async def test_program_that_does_not_exist(tmp_path: Path) -> None:
    async with LocalHost() as host:
        with pytest.raises(LaunchError, match="could not be started") as caught:
            await host.launch(
                Launch(("/nowhere/qemu",), {"qmp": tmp_path / "qmp.sock"}),
                stderr=tmp_path / "log",
                node="a",
            )
        assert caught.value.node == "a"
        assert caught.value.hint
        assert not (tmp_path / "qmp.sock").exists()
        with pytest.raises(PreconditionFailed, match="Cannot write"):
            await host.launch(Launch(tuple(SLEEP)), stderr=tmp_path / "none" / "log")


async def test_cancelled_launch_leaves_nothing(tmp_path: Path) -> None:
    mark = f"{300 + os.getpid() / 10**7:.7f}"

    def running() -> bool:
        return any(
            mark.encode() in path.read_bytes()
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.parent.exists()
        )

    async with LocalHost() as host:
        for turns in range(4):
            launching = asyncio.create_task(
                host.launch(
                    Launch(("sleep", mark), {"qmp": tmp_path / "qmp.sock"}),
                    stderr=tmp_path / "log",
                )
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            launching.cancel()
            await asyncio.wait([launching])
            assert launching.cancelled()
    assert not running()
    assert not (tmp_path / "qmp.sock").exists()


async def test_output_is_appended_and_its_tail_can_be_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with LocalHost() as host:
        for word in ("one", "two"):
            process = await host.launch(
                Launch(
                    ("sh", "-c", f"echo {word}; echo {word} said again >&2; read line || echo eof")
                ),
                stderr=log,
            )
            await process.wait()
    assert tail(log).splitlines() == [
        *("one", "one said again", "eof"),
        *("two", "two said again", "eof"),
    ]
    assert tail(log, 1) == "eof"
    assert tail(tmp_path / "none") == ""
    assert log.stat().st_mode & 0o777 == 0o600


def test_argv_gets_the_numbers_of_its_sockets() -> None:
    argv = ["-chardev", "socket,id=a,fd={fd:a}", "-chardev", "socket,id=b,fd={fd:b}", "{fd:a}"]
    assert with_numbers(argv, {"a": 5, "b": 11}) == [
        "-chardev",
        "socket,id=a,fd=5",
        "-chardev",
        "socket,id=b,fd=11",
        "5",
    ]
    assert with_numbers(argv, {"a": 5, "b": 11}, {1}) == ["-chardev", "socket,id=a,fd=5", *argv[2:]]
    assert with_numbers(['{"driver":"qcow2"}'], {}) == ['{"driver":"qcow2"}']
    with pytest.raises(ValueError, match="names no listening socket"):
        with_numbers(["{fd:c}"], {"a": 5})

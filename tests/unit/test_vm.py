"""What a VM makes of QEMUs that answer only in part."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from support.becoming import becomes
from support.fakes import fake_vm

from coloctl import vm
from coloctl.cli.verbs import run_verb
from coloctl.errors import (
    DeadlineMissed,
    LaunchError,
    MonitorError,
    Unreachable,
    UnsupportedQEMU,
)
from coloctl.host import open_host
from coloctl.model.launch import Launch
from coloctl.vm import VM

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "answers",
    [
        {"query_status": {}},
        {"query_migrate": []},
        {"query_colo_status": None},
    ],
)
async def test_half_an_answer_is_a_monitor_error(answers: dict[str, Any]) -> None:
    async with fake_vm("a", [], **answers) as vm:
        with pytest.raises(MonitorError, match="node a"):
            await vm.observe()


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o755, "Exec format error"), (0o644, "Permission denied")]
)
def test_binary_that_does_not_start_is_no_qemu_for_coloctl(
    tmp_path: Path, mode: int, reason: str
) -> None:
    """A file that the kernel does not execute raises `UnsupportedQEMU`, which names it."""
    binary = tmp_path / "qemu-system-x86_64"
    binary.write_text("no program")
    binary.chmod(mode)

    async def check() -> None:
        async with open_host("local") as host:
            for ask in (vm.inspect, vm.learn):
                with pytest.raises(UnsupportedQEMU) as caught:
                    await ask(binary, host)
                assert caught.value.message == f"{binary} could not be started: {reason}."
                assert "qemu-system-x86_64 that runs" in (caught.value.hint or "")

    asyncio.run(check())
    if mode == 0o755:  # the verb itself refuses a file that may not be executed
        assert run_verb(["schema", "dump", "--qemu", str(binary)]) == UnsupportedQEMU.exit_code


#: What answers there does not speak QMP, and runs on when it is left.
NO_MONITOR = (
    "them = server.accept()[0]; them.sendall(b'SSH-2.0\\n'); them.recv(1);"
    " open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(99)"
)


def no_qemu(folder: Path, then: str) -> Launch:
    """A program that is none, says something, and does ``then`` with its monitor's ``server``."""
    program = (
        "import os, socket, sys, time; server = socket.socket(fileno=int(sys.argv[1]));"
        f" print('the last words', file=sys.stderr, flush=True); {then}"
    )
    return Launch(
        (sys.executable, "-c", program, "{fd:qmp}", str(folder / "left")),
        {name: folder / name for name in ("qmp", "rescue")},
        numbered=frozenset({3}),
    )


@pytest.mark.parametrize(
    ("then", "why"),
    [("sys.exit(1)", "the last words"), (NO_MONITOR, "does not speak QMP")],
    ids=["ended", "no-monitor"],
)
async def test_the_reason_is_that_of_the_qemu_that_ended_or_of_the_monitor_that_did_not_answer(
    tmp_path: Path, then: str, why: str
) -> None:
    host = open_host("local")
    try:
        with pytest.raises(LaunchError, match=why) as caught:
            await VM.launch("a", host, no_qemu(tmp_path, then), tmp_path)
        assert caught.value.tail == "the last words"
    finally:
        await host.aclose()


async def test_a_launch_that_is_given_up_while_its_qemu_may_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "END_WAIT_S", 60.0)
    left = tmp_path / "left"

    host = open_host("local")
    try:
        launching = asyncio.create_task(
            VM.launch("a", host, no_qemu(tmp_path, NO_MONITOR), tmp_path)
        )
        await becomes(lambda: left.exists() and left.read_text())
        await asyncio.sleep(0.05)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        assert not Path(f"/proc/{left.read_text()}").exists()
    finally:
        await host.aclose()


async def test_a_guest_has_booted_when_it_says_so_after_its_last_beginning(tmp_path: Path) -> None:
    """What an earlier life left on the console counts for nothing."""

    async with fake_vm("a", []) as vm:
        vm.writes_to(tmp_path / "console.log")
        await vm.until_booted("ready", 0)  # nobody saw it begin: it came booted
        assert vm.boots() == 0
        vm.console.path.write_text("ready\n")
        await vm.until_booted("ready", 5)
        assert not vm.booting
        assert vm.boots() == 6
        with pytest.raises(DeadlineMissed, match="ready"):
            await vm.until_booted("ready", 0)
        waiting = asyncio.create_task(vm.until_booted("ready", 5))
        await asyncio.sleep(0)
        vm.boots()  # again, before it was ready
        vm.console.path.write_text("ready\nrea")
        vm.console.path.write_text("ready\nready\n")
        await waiting
        assert not vm.booting


async def test_a_guest_whose_qemu_ends_is_not_waited_for(tmp_path: Path) -> None:
    async with fake_vm("a", []) as vm:
        vm.writes_to(tmp_path / "console.log")
        vm.boots()
        vm.process.die()
        with pytest.raises(Unreachable):
            await vm.until_booted("ready", 5)

"""What a VM makes of QEMUs that answer only in part."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fakes import fake_vm

from coloctl.errors import DeadlineMissed, LaunchError, MonitorError, Unreachable
from coloctl.host import open_host
from coloctl.host.console import Console
from coloctl.machine.cmdline import Launch
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
def test_half_an_answer_is_a_monitor_error(answers: dict[str, Any]) -> None:
    async def check() -> None:
        async with fake_vm("a", [], **answers) as vm:
            with pytest.raises(MonitorError, match="node a"):
                await vm.observe()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("sys.exit(1)", "the last words"),
        ("server.accept()[0].sendall(b'SSH-2.0\\n'); time.sleep(99)", "does not speak QMP"),
    ],
    ids=["ended", "no-monitor"],
)
def test_the_reason_is_that_of_the_qemu_that_ended_or_of_the_monitor_that_did_not_answer(
    tmp_path: Path, then: str, why: str
) -> None:
    program = (
        "import socket, sys, time; server = socket.socket(fileno=int(sys.argv[1]));"
        f" print('the last words', file=sys.stderr, flush=True); {then}"
    )
    launch = Launch(
        (sys.executable, "-c", program, "{fd:qmp}"),
        {name: tmp_path / name for name in ("qmp", "rescue")},
    )

    async def check() -> None:
        host = open_host("local")
        try:
            with pytest.raises(LaunchError, match=why) as caught:
                await VM.launch("a", host, launch, tmp_path)
            assert caught.value.tail == "the last words"
        finally:
            await host.aclose()

    asyncio.run(check())


def test_a_guest_has_booted_when_it_says_so_after_its_last_beginning(tmp_path: Path) -> None:
    """What an earlier life left on the console counts for nothing."""

    async def check() -> None:
        async with fake_vm("a", []) as vm:
            vm.console = Console(tmp_path / "console.log")
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

    asyncio.run(check())


def test_a_guest_whose_qemu_ends_is_not_waited_for(tmp_path: Path) -> None:
    async def check() -> None:
        async with fake_vm("a", []) as vm:
            vm.console = Console(tmp_path / "console.log")
            vm.boots()
            vm.process.die()
            with pytest.raises(Unreachable):
                await vm.until_booted("ready", 5)

    asyncio.run(check())

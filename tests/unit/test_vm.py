"""What a VM makes of QEMUs that answer only in part."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.fakes import fake_vm

from coloctl.errors import DeadlineMissed, MonitorError, Unreachable
from coloctl.host.console import Console

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

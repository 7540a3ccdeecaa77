"""What a VM makes of QEMUs that answer only in part."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.fakes import fake_vm

from coloctl.errors import MonitorError

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

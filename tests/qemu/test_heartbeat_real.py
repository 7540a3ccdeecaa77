"""The heart of a real pair: a frozen node is silent until it thaws, and a busy pair never is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pairs import Stage, firmware_spec, make_disks, qemu_io, supervised

from coloctl.chaos.faults.burners import burners
from coloctl.ha.monitoring_path import MonitoringPath, monitoring_paths
from coloctl.lab import qemu
from coloctl.model.observation import Diagnosis, Life, Observation
from coloctl.model.pair import NODES, PairSpec, Role

pytestmark = pytest.mark.qemu

#: Checkpoints that are taken while other processes want every processor.
CHECKPOINTS = 12


@pytest.fixture
def spec(tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    build = qemu_builds("11.1")
    spec = firmware_spec(tmp_path, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    return spec


def over(seen: Observation) -> list[MonitoringPath]:
    """The monitoring paths that have reached their limit."""
    return [path for path in monitoring_paths(seen) if path.now_ms >= path.limit_ms]


async def thaws(stage: Stage, role: Role) -> None:
    """A node that is stopped becomes silent, and nothing of that is left once it runs again."""
    vm = stage.state.vm_of(role)

    def seen() -> Observation:
        assert stage.state.observation is not None
        return stage.state.observation

    vm.process.signal(signal.SIGSTOP)
    try:
        await stage.until(lambda: [path.node for path in over(seen())] == [vm.node])
        assert seen().nodes[vm.node].life is Life.STOPPED
        assert seen().nodes[vm.node].rescue_silent_ms >= seen().limits.suspect_ms
        frozen = {
            Role.PRIMARY: Diagnosis.PRIMARY_FROZEN,
            Role.SECONDARY: Diagnosis.SECONDARY_FROZEN,
        }
        assert stage.state.finding.diagnosis is frozen[role]
    finally:
        vm.process.signal(signal.SIGCONT)
    await stage.until(lambda: stage.state.finding.diagnosis is Diagnosis.HEALTHY)
    assert seen().nodes[vm.node].life is Life.ALIVE
    await stage.checkpoints()


async def test_silence_comes_from_a_stopped_node_and_not_from_checkpoints_on_busy_processors(
    spec: PairSpec,
) -> None:
    async with supervised(spec) as stage:
        reached: list[MonitoringPath] = []
        answered: set[tuple[str, str]] = set()
        supervisor = stage.supervisor
        supervisor.heard = lambda seen: reached.extend(over(seen))
        supervisor.timed = lambda node, path, _: answered.add((node, path))
        stage.state.pause(True)
        await stage.start()
        with burners(3):
            await qemu_io(stage.primary, "write -P 0x11 0 4M")
            await stage.checkpoints(CHECKPOINTS)
        assert not reached
        assert answered == {(n, path) for n in NODES for path in ("rescue", "command", "link")}
        for role in (Role.SECONDARY, Role.PRIMARY):
            await thaws(stage, role)

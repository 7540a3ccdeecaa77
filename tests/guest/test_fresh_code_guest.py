"""The lab's guest boots, and reboots, inside COLO under TCG: its secondary stays the same guest.

Without the fresh-code plugin the secondary's kernel is damaged in most such boots (docs/qemu.md,
"Stale translations"). Nothing here lets the guest boot alone: its pair file has no `ready_line`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator

import pytest
from support.clients import ask, booted, first_as_later, tell
from support.pairs import Stage, supervised

from coloctl.check import freshcode
from coloctl.lab import guest
from coloctl.lab.network import Lab
from coloctl.model.pair import NODES, PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.guest

#: What only a damaged kernel, or a program on one, says on the console.
DAMAGE = re.compile(r"BUG|Oops|[Pp]anic|segfault|invalid opcode|general protection|stack segment")

#: Checkpoints make a boot in COLO slow: it took 40 s where both cores had other work. Seconds.
BOOT_PATIENCE_S = 180.0

#: Most damage was done within some tens of checkpoints.
CHECKPOINTS = 40


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-fresh") as lab:
        yield lab


@pytest.fixture
def spec(described: PairSpec) -> PairSpec:
    assert described.guest.qemu is not None
    freshcode.provide(described.guest.qemu)
    return described


def damage(stage: Stage) -> list[str]:
    """Each line of both consoles that a sound guest never writes."""
    found = []
    for node in NODES:
        console = stage.state.ground.rundir(node) / "console.log"
        text = console.read_text(errors="replace") if console.exists() else ""
        found += [f"{node}: {line}" for line in text.splitlines() if DAMAGE.search(line)]
    return found


async def several_checkpoints(stage: Stage, more: int) -> None:
    """That many checkpoints more, however long they take on a busy machine."""
    for _ in range(more // 4):
        await stage.checkpoints(4)


async def takes_over(stage: Stage, lab: Lab) -> None:
    """The secondary serves what the primary was told."""
    assert await ask(lab, "SET", "kept", "1") == "+OK"
    await acts.failover(stage.state, stage.secondary.node)
    assert await ask(lab, "GET", "kept") == "$1\n1"


async def test_a_guest_that_boots_in_colo_has_a_sound_secondary(spec: PairSpec, lab: Lab) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        await booted(stage)
        await acts.set_values(stage.state, {"checkpoint-delay": 200})
        await several_checkpoints(stage, CHECKPOINTS)
        assert stage.state.protection is Protection.COLO
        await first_as_later(stage, lab)
        await takes_over(stage, lab)
        assert damage(stage) == []


async def test_a_guest_that_reboots_in_colo_has_a_sound_secondary(spec: PairSpec, lab: Lab) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        await booted(stage)
        console = stage.state.ground.rundir("a") / "console.log"
        lives = console.read_text(errors="replace").count(guest.READY_LINE)
        await tell(lab, "reset")
        async with asyncio.timeout(BOOT_PATIENCE_S):
            while console.read_text(errors="replace").count(guest.READY_LINE) <= lives:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await several_checkpoints(stage, 8)
        assert stage.state.protection is Protection.COLO
        await takes_over(stage, lab)
        assert damage(stage) == []

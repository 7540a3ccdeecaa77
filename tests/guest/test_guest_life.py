"""A guest that reboots, powers off or panics under protection: the pair does the sensible thing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.clients import ask, guest_spec, tell
from support.pairs import Stage, supervised

from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import NODES, NodeName, OnPanic, PairSpec, Policy, other
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.guest

#: Where the guest runs. On node b its QEMU was a secondary before, which is the harder case;
#: COLOCTL_BOTH_SIDES=1 plays both.
SIDES: tuple[NodeName, ...] = NODES if os.environ.get("COLOCTL_BOTH_SIDES") else ("b",)

DescribeGuest = Callable[..., PairSpec]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-life") as lab:
        yield lab


@pytest.fixture
def pair(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path_factory: pytest.TempPathFactory,
    qemu_builds: Callable[[str], qemu.Build],
) -> DescribeGuest:
    """The lab's guest as a pair that fails over by itself; ``kernel`` are words for its kernel."""

    def described(kernel: str = "", on_panic: OnPanic = OnPanic.REPORT, **more: Any) -> PairSpec:
        folder: Path = tmp_path_factory.mktemp("g")
        spec = guest_spec(lab, guest_image, folder, qemu_builds("11.1"))
        append = f"{spec.guest.append} {kernel}".rstrip()
        changed = replace(spec.guest, append=append, ready_line=guest.READY_LINE, **more)
        return replace(spec, guest=changed, policy=Policy(on_panic=on_panic))

    return described


async def protected(stage: Stage, node: NodeName = "a") -> None:
    """The guest serves and is protected, its primary on ``node``."""
    await stage.start()
    if node != "a":
        await acts.failover(stage.state, node)
        await stage.start()
    await stage.checkpoints(2)
    assert stage.primary.node == node


async def protected_again(stage: Stage, lab: Lab) -> None:
    """The guest has booted alone, and its new secondary is worth something: it takes over."""
    await stage.until(lambda: not stage.state.act)
    node = stage.primary.node
    assert stage.primary.booting
    await stage.start()
    assert not stage.primary.booting
    await stage.checkpoints(2)
    await acts.failover(stage.state, other(node))
    assert await ask(lab, "GET", "kept") == "$1\n1"


def failovers(stage: Stage) -> list[str]:
    return [str(d["timeline"]["cause"]) for name, d in stage.events if name == "FAILED_OVER"]


def heard(stage: Stage, event: str) -> int:
    return sum(name == "NODE_EVENT" and d["event"] == event for name, d in stage.events)


async def ends_without_failover(stage: Stage, lab: Lab, word: str, reason: str) -> None:
    """The guest does what ``word`` says, and its pair ends for that reason alone."""
    before = failovers(stage), stage.state.generation
    await tell(lab, word)
    await stage.until_protection(Protection.DOWN)
    assert stage.state.view().reason == reason
    assert not stage.state.running()
    assert (failovers(stage), stage.state.generation) == before


async def reboots(stage: Stage, lab: Lab, word: str) -> None:
    """Restart the protected guest by ``word``: it boots alone, and is protected again."""
    generation, node = stage.state.generation, stage.primary.node
    assert await ask(lab, "SET", "kept", "1") == "+OK"
    await tell(lab, word)
    await stage.until_protection(Protection.UNPROTECTED)
    assert stage.primary.node == node
    assert "rebooting" in stage.state.view().reason
    assert failovers(stage)[-1:] == ["guest-reset"]
    assert stage.state.generation == generation + 1
    await protected_again(stage, lab)


@pytest.mark.parametrize("node", SIDES)
async def test_a_guest_that_reboots_does_so_alone_and_one_that_powers_off_ends_its_pair(
    pair: DescribeGuest, lab: Lab, node: NodeName
) -> None:
    """One life of a guest: it is moved after each start, so each QEMU was a secondary before."""
    async with supervised(pair()) as stage:
        await protected(stage, node)
        await reboots(stage, lab, "reboot")
        await stage.start()
        await stage.checkpoints(2)
        await reboots(stage, lab, "reset")
        await stage.start()
        await stage.checkpoints(2)
        await ends_without_failover(stage, lab, "poweroff", "The guest shut itself down.")


@pytest.mark.parametrize("node", SIDES)
@pytest.mark.parametrize("kernel", ["panic=0", "panic=-1"])
async def test_a_panic_may_end_the_pair(
    pair: DescribeGuest, lab: Lab, node: NodeName, kernel: str
) -> None:
    """Also a guest that would start again at once."""

    async with supervised(pair(kernel, OnPanic.STOP)) as stage:
        await protected(stage, node)
        await ends_without_failover(stage, lab, "panic", "The guest's kernel panicked.")


@pytest.mark.parametrize("node", SIDES)
@pytest.mark.parametrize("kernel", ["panic=0", "panic=-1"])
async def test_a_panic_may_restart_the_guest(
    pair: DescribeGuest, lab: Lab, node: NodeName, kernel: str
) -> None:
    """One that resets itself is left to do that."""

    async with supervised(pair(kernel, OnPanic.RESTART)) as stage:
        await protected(stage, node)
        assert await ask(lab, "SET", "kept", "1") == "+OK"
        await tell(lab, "panic")
        await stage.until_protection(Protection.UNPROTECTED)
        assert stage.primary.node == node
        assert failovers(stage)[-1:] == ["guest-reset"]
        await protected_again(stage, lab)


@pytest.mark.parametrize("node", SIDES)
async def test_a_panic_is_told_and_the_guest_left_as_it_is(
    pair: DescribeGuest, lab: Lab, node: NodeName
) -> None:
    """QEMU stops neither side, so checkpoints go on, and what the guest holds can be looked at."""

    async with supervised(pair("panic=0")) as stage:
        await protected(stage, node)
        before = failovers(stage)
        await tell(lab, "panic")
        await stage.until(lambda: stage.state.view().diagnosis is Diagnosis.GUEST_PANIC)
        await stage.checkpoints(3)
        assert stage.state.protection is Protection.COLO
        assert failovers(stage) == before
        assert not heard(stage, "RESET")


@pytest.mark.parametrize("node", SIDES)
async def test_the_agent_in_the_guest_shuts_it_down(
    pair: DescribeGuest, lab: Lab, node: NodeName
) -> None:
    """Its port goes along with migrations and failovers; nobody presses the power button."""

    async with supervised(pair(agent=True)) as stage:
        await protected(stage, node)
        assert await ask(lab, "SET", "kept", "1") == "+OK"
        assert await acts.stop(stage.state, force=False) == "guest shut down"
        assert stage.steps()[-2:] == ["agent", "guest"]
        assert not heard(stage, "POWERDOWN")


async def test_a_guest_without_its_agent_gets_the_power_button(
    pair: DescribeGuest, lab: Lab
) -> None:
    async with supervised(pair("coloctl.agent=0", agent=True)) as stage:
        await stage.start(protected=False)
        await stage.primary.until_booted(guest.READY_LINE, 60)
        assert await acts.stop(stage.state, force=False) == "guest shut down"
        assert heard(stage, "POWERDOWN")

"""A real guest's clients lose nothing when nobody is there to ask for a failover."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.clients import booted, clients, guest_spec
from support.pairs import Stage, supervised

from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.lab import guest, link, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec, Policy, Role
from coloctl.model.protection import Protection
from coloctl.qmp import command as qmp

pytestmark = pytest.mark.guest


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A fresh one per test, because it counts checksums from its beginning."""
    with Lab.up(f"t{os.getpid()}-auto") as lab:
        yield lab


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("g")


@pytest.fixture
def spec(
    lab: Lab,
    guest_image: guest.GuestImage,
    folder: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> PairSpec:
    spec = guest_spec(lab, guest_image, folder, qemu_builds("11.1"))
    return replace(spec, policy=Policy(auto_failover=True))


async def protected(stage: Stage) -> None:
    await stage.start(protected=False)
    await booted(stage)
    await stage.start()


def tap_is_up(lab: Lab, node: str) -> bool:
    ns = {"a": lab.host_a, "b": lab.host_b}[node]
    (device,) = link.netlink(ns, lambda ip: ip.get_links(ifname=f"tap-{node}"))
    return bool(device["flags"] & 1)


@pytest.mark.parametrize("fault", ["link", "freeze"])
async def test_clients_lose_nothing_and_a_zombie_is_dead(
    spec: PairSpec, lab: Lab, folder: Path, fault: str
) -> None:
    """Both sides live when it begins; whoever comes back afterwards finds itself dead."""
    wanted, lost_role = {
        "link": ("link-broken", Role.SECONDARY),
        "freeze": ("primary-frozen", Role.PRIMARY),
    }[fault]

    async with supervised(spec) as stage:
        await protected(stage)
        lost = stage.state.vm_of(lost_role)
        with clients(lab, folder / "history") as at_work:
            await at_work.acknowledged(20)
            await stage.checkpoints(2)
            at_s = time.monotonic()
            if fault == "link":
                lab.link("replication").cut()
            else:
                lost.process.signal(signal.SIGSTOP)
            await stage.until_protection(Protection.UNPROTECTED)
            lab.link("replication").heal()
            assert not lost.process.signal(signal.SIGCONT)
            assert not lost.process.alive()
            await at_work.acknowledged(20)
            assert not tap_is_up(lab, lost.node)
            verdicts = at_work.verdicts(at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        assert lab.bad_checksums() == 0
        (told,) = (data for name, data in stage.events if name == "FAILED_OVER")
        assert told["timeline"]["cause"] == wanted
        assert told["timeline"]["fault_ms"] is not None


async def test_a_guest_that_powers_itself_off_ends_its_pair(spec: PairSpec) -> None:
    """In COLO; nobody is promoted, and nothing of the pair is left running."""

    async with supervised(spec) as stage:
        await protected(stage)
        await stage.primary.execute(qmp.system_powerdown())
        await stage.until_protection(Protection.DOWN)
        assert stage.state.view().reason == "The guest shut itself down."
        assert not stage.state.running()
        assert stage.state.generation == 0
        assert not [name for name, _ in stage.events if name == "FAILED_OVER"]

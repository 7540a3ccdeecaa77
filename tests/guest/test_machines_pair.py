"""A pair on two machines of the lab survives the machine that it is for, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshhost
from support.clients import ask, clients
from support.pairs import PATIENCE_S, supervised

from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.host import systemd
from coloctl.lab import machine_pair
from coloctl.lab.machines import Machines
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]


#: Until a machine is found again, and the pair protected on it; a busy system needs a minute.
RETURN_S = 240.0


@pytest.fixture
def lab() -> Iterator[Machines]:
    """A fresh one per test, because it counts checksums from its beginning.

    The clocks of its machines are weeks apart: a time that one gave to another would be found.
    """
    with Machines.up(f"t{os.getpid()}-mp", clocks=True) as standing:
        yield standing


async def test_a_pair_outlives_its_secondarys_machine_and_takes_it_back(
    machine_spec: PairSpec, lab: Machines, tmp_path: Path
) -> None:
    """The power of hv2 fails under load; it returns, is made equal, and serves in its turn.

    hv2 has no image before: the start makes it. It looks as if systemd ran there, and no systemd
    answers: the QEMU has no unit, which is shown.
    """
    assert all(nic.tap is not None and nic.tap.made for nic in machine_spec.nics)
    there = machine_pair.disks(machine_spec.name, lab)["hv2"]
    there.unlink()
    lab.machine("hv2").here(systemd.BOOTED).mkdir(parents=True)
    async with supervised(machine_spec) as stage:
        await stage.start()
        owner = stage.state.ground.node("b").account
        assert owner is not None
        lent = there.stat()
        assert stat.S_IMODE(lent.st_mode) == 0o600 and lent.st_uid == owner.uid
        nodes = stage.state.view().nodes
        assert nodes["b"].unit.startswith("The QEMU of node b on hv2 has no unit of systemd: ")
        assert not nodes["a"].unit
        assert await ask(lab, "PING") == "+PONG"
        account = stage.state.ground.node("a").account
        assert account is not None and account.name == "coloctl-qemu"
        with clients(lab, tmp_path / "history") as at_work:
            await at_work.acknowledged(20)
            before, at_s = stage.state.generation, time.monotonic()
            lab.machine("hv2").crash()
            await stage.until_protection(Protection.UNPROTECTED)
            await at_work.acknowledged(5)
            lab.machine("hv2").boot()

            def returned() -> bool:
                in_colo = stage.state.protection is Protection.COLO and not stage.state.act
                return in_colo and stage.state.generation > before

            async with asyncio.timeout(RETURN_S):
                while not returned():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert not stage.state.view().nodes["b"].unit  # /run is empty after a boot
            await at_work.acknowledged(5)
            done = await acts.switchover(
                stage.state, stage.supervisor.watch, stage.supervisor.entered
            )
            assert done.survivor == "b"
            await at_work.acknowledged(5)
            verdicts = at_work.verdicts(at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        assert lab.bad_checksums() == 0
        assert await acts.stop(stage.state, force=False) == "guest shut down"
    async with asyncio.timeout(PATIENCE_S):
        while lab.busy():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    # An image stays the account's where its machine booted while the pair ran.
    for name, uid in (("hv1", 0), ("hv2", owner.uid)):
        kept = machine_pair.disks(machine_spec.name, lab)[name].stat()
        assert (stat.S_IMODE(kept.st_mode), kept.st_uid) == (0o600, uid), name
    for name in ("hv1", "hv2"):
        words = ["find", "/run/coloctl", "-type", "f", "-not", "-name", "*.log"]
        with lab.machine(name).popen(words, stdout=subprocess.PIPE, text=True) as found:
            assert not found.communicate()[0], name
        with lab.machine(name).popen(
            ["ip", "-o", "link"], stdout=subprocess.PIPE, text=True
        ) as out:
            assert "ct-" not in out.communicate()[0], name

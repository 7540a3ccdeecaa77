"""The connection to a node's machine is lost while the pair is in COLO: its QEMUs run on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshhost
from support.clients import booted, clients
from support.pairs import Stage, supervised

from coloctl import procfs
from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.host.records import Contact
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

#: What ssh and its agent may take to be there again after a cut; nothing measures against it.
AGAIN_S = 60.0


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-lost") as lab:
        yield lab


async def protected(stage: Stage) -> None:
    """The guest booted, and a secondary was made while it ran."""
    await stage.start(protected=False)
    await booted(stage)
    await stage.start()


def ssh_client() -> int:
    """The ssh that this process has started."""
    found = [
        pid
        for pid, stat in procfs.living().items()
        if stat.parent == os.getpid() and Path(f"/proc/{pid}/comm").read_text() == "ssh\n"
    ]
    assert len(found) == 1, found
    return found[0]


async def until_contact(stage: Stage, wanted: Contact) -> None:
    host = stage.state.ground.hosts["b"]
    async with asyncio.timeout(AGAIN_S):
        while (reach := host.reach).contact is not wanted:
            await host.reached(reach)


async def colo_goes_on(stage: Stage, generation: int) -> None:
    """Checkpoints are taken, both QEMUs answer, and nothing has failed over."""
    await stage.checkpoints(3)
    for node in ("a", "b"):
        await stage.vm(node).observe(10)
    assert (stage.state.protection, stage.state.generation) == (Protection.COLO, generation)


async def test_a_connection_that_breaks_costs_a_pair_nothing(
    ssh_spec: PairSpec, lab: Lab, tmp_path: Path
) -> None:
    """ssh is killed, and frozen until it is given up: the session with the agent is resumed."""
    async with supervised(ssh_spec) as stage:
        await protected(stage)
        host = stage.state.ground.hosts["b"]
        session, generation = host.reach.session, stage.state.generation
        with clients(lab, tmp_path / "history") as at_work:
            await at_work.acknowledged(5)
            at_s = time.monotonic()
            for how in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
                os.kill(ssh_client(), how)
                await until_contact(stage, Contact.LOST)
                assert stage.state.protection is Protection.COLO
                await at_work.acknowledged(1)
                await until_contact(stage, Contact.CONNECTED)
                await colo_goes_on(stage, generation)
            assert host.reach.session == session
            await at_work.acknowledged(5)
            verdicts = at_work.verdicts(at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        os.kill(stage.secondary.process.identity.pid, signal.SIGKILL)
        await stage.until(lambda: stage.state.generation > generation)
        assert stage.primary.node == "a"
        assert await acts.stop(stage.state, force=False) == "guest shut down"

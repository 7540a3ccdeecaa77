"""The replication link of a pair on two machines is cut: the primary goes on, on either machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshhost
from support.clients import booted, clients
from support.pairs import supervised

from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.lab.network import Lab
from coloctl.model.observation import Diagnosis, Life
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-slnk") as lab:
        yield lab


async def test_a_primary_goes_on_alone_on_its_own_machine_and_on_another(
    ssh_spec: PairSpec, lab: Lab, tmp_path: Path
) -> None:
    """A remote primary has reported since the link fell silent, so its machine is not what is lost.

    The secondary is then the supervisor's own, and is given up all the same.
    """
    async with supervised(ssh_spec) as stage:
        await stage.start(protected=False)
        await booted(stage)
        await stage.start()
        state, link = stage.state, lab.link("replication")
        found: list[Diagnosis] = []
        hear = stage.supervisor.heard
        stage.supervisor.heard = lambda seen: (found.append(state.finding.diagnosis), hear(seen))[1]
        with clients(lab, tmp_path / "history") as at_work:
            await at_work.acknowledged(10)
            at_s = time.monotonic()
            for primary in ("a", "b"):
                await stage.checkpoints(5)
                seen = state.observation
                assert seen is not None and stage.primary.node == primary
                assert seen.nodes["b"].agent_silent_ms is not None
                assert seen.nodes["a"].agent_silent_ms is None
                assert {one.life for one in seen.nodes.values()} == {Life.ALIVE}
                found.clear()
                link.cut()
                await stage.until_protection(Protection.UNPROTECTED)
                assert stage.primary.node == primary
                assert Diagnosis.LINK_BROKEN in found
                assert not {Diagnosis.HOST_UNREACHABLE, Diagnosis.SECONDARY_DIVERGED} & {*found}
                await at_work.acknowledged(5)
                link.heal()
                await stage.until(lambda: state.protection is Protection.COLO and not state.act)
                if primary == "a":
                    await acts.switchover(state, stage.supervisor.watch, stage.supervisor.entered)
            await at_work.acknowledged(5)
            verdicts = at_work.verdicts(at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        assert await acts.stop(state, force=False) == "guest shut down"

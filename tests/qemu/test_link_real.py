"""A guest that runs alone is left alone while the link to its next secondary carries nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pairs import Stage, firmware_spec, make_disks, supervised

from coloctl.colo import link
from coloctl.errors import ReplicationError
from coloctl.lab import layout, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import NodeSpec, PairSpec, Role
from coloctl.model.protection import Protection
from coloctl.supervisor import acts
from coloctl.supervisor.recorder import CHATTER

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-link") as lab:
        yield lab


@pytest.fixture
def spec(lab: Lab, tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    """A firmware guest on the lab's two hosts."""
    build = qemu_builds("11.1")
    spec = firmware_spec(tmp_path, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    nodes = {
        "a": NodeSpec("a", f"netns:{lab.host_a}", layout.REPLICATION_A),
        "b": NodeSpec("b", f"netns:{lab.host_b}", layout.REPLICATION_B),
    }
    return replace(spec, nodes=nodes)


def told(stage: Stage) -> list[Any]:
    """What was said to the guest's QEMU so far, other than questions."""
    lines = stage.state.recorders[stage.primary.node].lines()
    commands = [line["message"] for line in lines if str(line["what"]).endswith(" sent")]
    names = [(one.get("execute") or one["exec-oob"], one) for one in commands]
    asks = ("query-", "qom-list", "qom-get")
    return [one for name, one in names if name not in CHATTER and not name.startswith(asks)]


def reprotect(stage: Stage) -> Any:
    return acts.reprotect(stage.state, stage.supervisor.watch, stage.supervisor.entered)


async def test_a_silent_link_never_reaches_the_guest(
    lab: Lab, spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut both ways, or one way only, or once the secondary waits; then it is mended."""
    wire = lab.link("replication")
    port = spec.replication.nbd_port()

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        before = told(stage)
        for sender in (None, lab.host_a, lab.host_b):
            wire.cut(sender=sender)
            with monkeypatch.context() as impatient:
                impatient.setattr(link, "ANSWER_WAIT_S", 0.5)
                with pytest.raises(ReplicationError, match=f"{layout.REPLICATION_B}:{port}"):
                    await reprotect(stage)
            wire.clear()
            assert told(stage) == before
            assert stage.state.seat_of(Role.SECONDARY) is None
        stage.at_step("connect", wire.cut)
        with pytest.raises(ReplicationError):  # the link's heartbeat may notice it first
            await reprotect(stage)
        wire.clear()
        assert "blockdev-add" not in [one.get("execute") for one in told(stage)]
        assert stage.state.protection is Protection.UNPROTECTED
        await reprotect(stage)
        assert stage.state.protection is Protection.COLO
        assert "blockdev-add" in [one.get("execute") for one in told(stage)]

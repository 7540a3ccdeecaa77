"""Goal: each node runs the QEMU of its own path, and two that cannot be one pair are refused.

Method: real pairs of firmware guests, node b's QEMU a wrapper at a path of its own. The program
that measures accelerators is compared with the same measurement in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import Stage, firmware_spec, on_pair

from coloctl.check.doctor import examine_pair
from coloctl.check.finding import Severity
from coloctl.colo.inspect import kvm_trial, prepare
from coloctl.errors import UnsupportedQEMU
from coloctl.host import open_host
from coloctl.lab import qemu
from coloctl.machine import accel
from coloctl.model.pair import PairSpec, Role
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    """The one of the matrix that holds COLO under every accelerator."""
    return qemu_builds("11.1")


@pytest.fixture(scope="module")
def old(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    return qemu_builds("10.0")


def with_own(spec: PairSpec, binary: Path) -> PairSpec:
    return replace(spec, nodes={**spec.nodes, "b": replace(spec.nodes["b"], qemu=binary)})


def test_each_node_runs_the_qemu_of_its_own_path(build: qemu.Build, tmp_path: Path) -> None:
    own = tmp_path / "opt" / "qemu"
    own.parent.mkdir()
    own.write_text(f'#!/bin/sh\nexec {build.binary} "$@"\n')
    own.chmod(0o755)
    own.with_name("qemu-img").symlink_to(build.img)
    spec = with_own(firmware_spec(tmp_path, build, "tcg"), own)

    async def act(stage: Stage) -> None:
        ground = stage.state.ground
        assert ground.node("a").binary.path == build.binary
        assert ground.node("b").binary.path == own
        assert ground.node("a").qemu_img == build.img
        assert ground.node("b").qemu_img == own.with_name("qemu-img")
        assert stage.state.seats["b"].view.qemu_version == stage.state.seats["a"].view.qemu_version
        watch, entered = stage.supervisor.watch, stage.supervisor.entered
        await acts.switchover(stage.state, watch, entered, force=True)
        assert stage.state.protection is Protection.COLO
        assert stage.state.vm_of(Role.PRIMARY).node == "b"

    on_pair(spec, build, act, started=True)


async def test_two_versions_are_no_pair(build: qemu.Build, old: qemu.Build, tmp_path: Path) -> None:
    spec = with_own(firmware_spec(tmp_path, build, "tcg"), old.binary)
    with pytest.raises(UnsupportedQEMU) as refused:
        await prepare(spec)
    assert f"Node b ({old.binary}) has QEMU 10.0" in refused.value.message
    assert f"node a ({build.binary}) has 11.1" in refused.value.message
    found = {one.name: one for one in await examine_pair(spec) if one.severity is Severity.ERROR}
    assert "Node a runs 'QEMU emulator version 11.1" in found["versions"].sentence


async def test_the_program_measures_what_this_process_measures(build: qemu.Build) -> None:
    host = open_host("local")
    try:
        there = await kvm_trial(host, build.binary)
    finally:
        await host.aclose()
    here = await asyncio.to_thread(accel.prove, build.binary)
    assert (there.real, there.accel) == (here.real, here.accel)
    assert there.tcg.loop_s is not None and there.tcg.turns == here.tcg.turns
    assert there.kvm.long_mode == here.kvm.long_mode

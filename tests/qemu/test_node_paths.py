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
from support.dials import AGENT
from support.pairs import Stage, firmware_spec, make_disks, on_pair

from coloctl.check import freshcode
from coloctl.check.doctor import examine_pair
from coloctl.check.finding import Severity
from coloctl.colo import plugin
from coloctl.colo.inspect import kvm_trial, look, prepare, require_files
from coloctl.errors import SpecError, UnsupportedQEMU
from coloctl.host import open_host
from coloctl.host.remote.host import RemoteHost
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


async def test_an_agent_finds_the_facts_that_this_process_finds(
    build: qemu.Build, tmp_path: Path
) -> None:
    """The agent runs here, so that both see the same files; every look goes over its stream."""
    freshcode.provide(build.binary)
    spec = firmware_spec(tmp_path, build, "auto")
    there = replace(spec.nodes["b"], host="ssh://hv2")
    await make_disks(spec, build.img)
    async with RemoteHost("ssh://hv2", AGENT) as far, open_host("local") as near:
        await far.ready(30)
        found = await look(replace(spec, nodes={**spec.nodes, "b": there}), {"a": near, "b": far})
        assert found == await look(spec, {"a": near, "b": near})
        assert await plugin.find(far, build.binary) == freshcode.provide(build.binary)
        spec.disks[0].image["b"].unlink()  # it is made there
        on_far = replace(spec, nodes={**spec.nodes, "b": there})
        await require_files(on_far, far, "b")
        gone = replace(there, kernel=tmp_path / "gone")
        with pytest.raises(SpecError, match="cannot be used: No such file or directory") as refused:
            await require_files(replace(spec, nodes={**spec.nodes, "b": gone}), far, "b")
        assert refused.value.key == "node.b.kernel"


async def test_the_plugin_is_put_on_a_machine_that_has_none(
    build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's cache is another one than this process's, as on another machine."""
    own = freshcode.provide(build.binary)
    monkeypatch.setattr(plugin, "is_here", lambda _: False)
    command = ("env", f"COLOCTL_CACHE_DIR={tmp_path / 'there'}", *AGENT.command)
    async with RemoteHost("ssh://hv2", replace(AGENT, command=command)) as far:
        await far.ready(30)
        found = await plugin.find(far, build.binary)
        assert found == tmp_path / "there" / "plugin" / own.name
        assert found.read_bytes() == own.read_bytes()
        found.chmod(0o666)
        assert await plugin.find(far, build.binary) == found  # replaced as a whole
        assert found.stat().st_mode & 0o777 == 0o644
        found.parent.chmod(0o777)
        assert await plugin.find(far, build.binary) is None

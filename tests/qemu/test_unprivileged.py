"""A pair whose QEMUs run as another user: no capability, a sandbox, and its files given back."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.certificates import Authority
from support.moments import mortal
from support.orphans import end, leave_alone
from support.pairs import PATIENCE_S, Stage, firmware_spec, make_disks, on_pair, supervised

from coloctl import paths, procfs
from coloctl.check import command
from coloctl.check.doctor import examine_pair
from coloctl.clock import Deadline
from coloctl.colo import launch, plan
from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import PreconditionFailed
from coloctl.host import account
from coloctl.host.local import LocalHost
from coloctl.host.ownership import record_of
from coloctl.lab import layout, qemu
from coloctl.lab.network import Lab
from coloctl.machine import freshcode
from coloctl.model.pair import NODES, NodeName, NodeSpec, TapSpec, VerifySpec
from coloctl.model.protection import Protection
from coloctl.model.qapi import MigrationStatus
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.model.verified import VerifyOutcome
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.supervisor import acts
from coloctl.vm import VM, ended, inspect

pytestmark = pytest.mark.qemu

#: A user that no table of any machine has.
USER = 61234


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may pass, with a state folder in it."""
    if os.geteuid() != 0 or account.find(str(USER)) is None:
        pytest.skip("only root of the whole machine can start a program as another user")
    folder = Path(tempfile.mkdtemp(prefix="coloctl-user-", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(folder / "run"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    """The one of the matrix that holds COLO under every accelerator."""
    return qemu_builds("11.1")


def status_of(vm: VM) -> Mapping[str, str]:
    """The kernel's own account of a process."""
    lines = Path(f"/proc/{vm.process.identity.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def require_unprivileged(vm: VM) -> None:
    found = status_of(vm)
    assert set(found["Uid"].split()) == set(found["Gid"].split()) == {str(USER)}
    assert {int(found[one], 16) for one in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert vm.process.identity.uid == USER


def owners(stage: Stage) -> dict[NodeName, int]:
    return {node: stage.state.spec.disks[0].image[node].stat().st_uid for node in NODES}


def test_a_pair_changes_its_roles_and_gives_the_images_back(
    outside: Path, build: qemu.Build
) -> None:
    spec = firmware_spec(outside, build, "tcg", automatic=True, circular=True, user=str(USER))

    async def story(stage: Stage) -> None:
        watch, entered = stage.supervisor.watch, stage.supervisor.entered
        await stage.start()
        await stage.checkpoints(2)
        for vm in (stage.primary, stage.secondary):
            require_unprivileged(vm)
            assert freshcode.in_force(vm.process.argv)
        assert set(owners(stage).values()) == {USER}
        rundir = stage.primary.rundir
        assert rundir.stat().st_uid == 0
        assert stat.S_IMODE(rundir.stat().st_mode) == 0o3770
        for name in ("qmp.sock", "qemu.log"):
            assert (rundir / name).stat().st_uid == 0

        first = stage.primary.node
        os.kill(stage.primary.process.identity.pid, 9)
        await stage.until(
            lambda: stage.state.generation > 0 and stage.state.protection is Protection.COLO
        )
        assert stage.primary.node != first
        await stage.checkpoints(1)
        await acts.switchover(stage.state, watch, entered)
        await stage.until_protection(Protection.COLO)
        await stage.checkpoints(1)
        for vm in (stage.primary, stage.secondary):
            require_unprivileged(vm)

    on_pair(spec, build, story)
    assert {path.stat().st_uid for path in spec.disks[0].image.values()} == {0}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-user") as lab:
        yield lab


async def test_two_hosts_with_taps_encryption_and_packet_rules(
    outside: Path, build: qemu.Build, lab: Lab
) -> None:
    """All that a QEMU gets from coloctl because it may not take it: taps, keys, sockets, memory."""
    addresses: dict[NodeName, str] = {"a": layout.REPLICATION_A, "b": layout.REPLICATION_B}
    names: dict[NodeName, str] = {"a": "hv1", "b": "hv2"}
    authority = Authority.new()
    for node, name in names.items():
        authority.machine(outside / name, name, addresses[node])
    hosts: dict[NodeName, str] = {"a": lab.host_a, "b": lab.host_b}
    spec = firmware_spec(outside, build, "tcg", user=str(USER))
    tap = TapSpec({"a": layout.TAPS["host-a"], "b": layout.TAPS["host-b"]}, layout.BRIDGE)
    spec = replace(
        spec,
        nics=(replace(spec.nics[0], tap=tap),),
        nodes={
            node: NodeSpec(node, f"netns:{hosts[node]}", address)
            for node, address in addresses.items()
        },
        tls=TlsSpec(
            TlsMode.ON, folders={node: outside / name for node, name in names.items()}, names=names
        ),
        verify=VerifySpec(memory=True),
    )
    await make_disks(spec, build.img)
    async with supervised(spec) as stage:
        await stage.start()
        for turn in (1, 2):
            for vm in (stage.primary, stage.secondary):
                require_unprivileged(vm)
                assert await vm.host.tap_held(tap.ifname[vm.node])
            verified = await stage.supervisor.verifying.verify()
            assert verified.outcome is VerifyOutcome.EQUAL, verified
            # A new certificate comes while the QEMU runs: it must be able to read that, too.
            name = names[stage.primary.node]
            authority.machine(outside / name, name, addresses[stage.primary.node])
            await acts.switchover(stage.state, stage.supervisor.watch, stage.supervisor.entered)
            await stage.until_protection(Protection.COLO)
            await stage.checkpoints(1)
            assert stage.state.generation == turn
    assert {path.stat().st_uid for path in spec.disks[0].image.values()} == {0}


async def test_each_version_does_alone_what_a_pair_needs(
    outside: Path, qemu_build: qemu.Build
) -> None:
    """Launch, disks, filters and console; loops, replicas and a stream without COLO."""
    spec = firmware_spec(outside, qemu_build, "tcg", user=str(USER))
    await make_disks(spec, qemu_build.img)
    host = LocalHost()
    binary = await inspect(qemu_build.binary, host)
    facts = same_on_both(binary, "tcg")
    own = await host.account(str(USER))
    facts = replace(facts, nodes=dict.fromkeys(NODES, replace(facts.nodes["a"], account=own)))
    ground = Ground(dict.fromkeys(NODES, host), facts, paths.pair_dir(spec.name))
    vms: list[VM] = []
    try:
        primary = await launch.launch_primary(spec, ground, "a", paused=False, record=None)
        vms.append(primary)
        secondary = await launch.launch_secondary(spec, ground, "b", record=None)
        vms.append(secondary)
        for vm in vms:
            require_unprivileged(vm)
        deadline, wires = Deadline(PATIENCE_S), ground.wires(spec)
        steps = plan.prepare_secondary(wires, "b", binary.dialect)
        await run(steps, secondary.monitor, deadline=deadline)
        await run(plan.connect_replicas(wires, "b"), primary.monitor, deadline=deadline)
        thread = {"qom-type": "iothread", "id": "more"}
        await primary.execute(qmp.Command("object-add", thread))
        ours, theirs = await host.unix_channels()
        with ours, theirs:
            await secondary.give("stream", ours)
            await primary.give("stream", theirs)
        off = [{"capability": name, "state": False} for name in ("x-colo", "return-path")]
        for vm in vms:
            await vm.execute(qmp.Command("migrate-set-capabilities", {"capabilities": off}))
        await secondary.execute(qmp.Command("migrate-incoming", {"uri": "fd:stream"}))
        await primary.execute(qmp.Command("migrate", {"uri": "fd:stream"}))
        await until_migration(primary)
        os.kill(primary.process.identity.pid, 9)
        await ended(primary.process, PATIENCE_S)
    finally:
        for vm in vms:
            await vm.kill(10)
        for node in NODES:
            await launch.sweep(spec, ground, node)
        await host.aclose()
        shutil.rmtree(ground.folder)
    assert {path.stat().st_uid for path in spec.disks[0].image.values()} == {0}


async def until_migration(vm: VM) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (found := await vm.observe()).migration is not MigrationStatus.COMPLETED:
            assert found.migration is not MigrationStatus.FAILED
            await asyncio.sleep(0.05)


def test_the_next_supervisor_and_stop_by_force_find_it(outside: Path, build: qemu.Build) -> None:
    (outside / "pair").mkdir(mode=0o755)
    with mortal(outside / "pair", build) as pair:
        pair.file.write_text(
            pair.file.read_text().replace("[guest]\n", f"[guest]\nuser = {USER}\n")
        )
        assert f"user = {USER}" in pair.file.read_text()
        images = sorted((outside / "pair").glob("*.qcow2"))
        pair.type("start", str(pair.file))
        before = pair.view()
        assert before["protection"] == "colo"
        assert [node["user"] for node in before["nodes"]] == [str(USER)] * 2
        for qemu_pid in pair.qemus():
            assert f"Uid:\t{USER}\t" in Path(f"/proc/{qemu_pid}/status").read_text()
        end(before["supervisor_pid"])
        after = pair.settled()
        assert after is not None and after["supervisor_pid"] != before["supervisor_pid"]
        assert [n["pid"] for n in after["nodes"]] == [n["pid"] for n in before["nodes"]]
        assert images and {path.stat().st_uid for path in images} == {USER}
        leave_alone(pair)
        said = pair.type("stop", pair.name, "--force", "--yes")
        assert "ended" in said.lower() or "killed" in said.lower(), said
        # An ended one may be left as a zombie, where no process reaps orphans.
        assert not {node["pid"] for node in after["nodes"]} & procfs.living().keys()
        assert {path.stat().st_uid for path in images} == {0}


async def test_the_doctor_tries_the_command_lines_as_that_user(
    outside: Path, build: qemu.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = firmware_spec(outside, build, "tcg", user=str(USER))
    await make_disks(spec, build.img)
    tried: list[VM] = []

    async def launched(*words: Any) -> VM:
        tried.append(vm := await VM.launch(*words))
        require_unprivileged(vm)
        return vm

    monkeypatch.setattr(command, "VM", SimpleNamespace(launch=launched))
    found = await examine_pair(spec)
    assert [one.sentence for one in found if one.name == "command line"] == [
        "Both nodes start their QEMU as primary and as secondary, all of it replicable."
    ]
    assert len(tried) == 4
    assert {path.stat().st_uid for path in spec.disks[0].image.values()} == {0}


def test_what_another_user_cannot_reach_is_refused(outside: Path, build: qemu.Build) -> None:
    closed = outside / "closed"
    closed.mkdir(mode=0o700)
    spec = firmware_spec(closed, build, "tcg", user=str(USER))

    async def story(stage: Stage) -> None:
        with pytest.raises(PreconditionFailed, match=f"{USER} cannot reach .*closed .mode 0700"):
            await stage.start(protected=False)
        assert not record_of(stage.state.ground.rundir("a")).exists()

    on_pair(spec, build, story)
    assert {path.stat().st_uid for path in spec.disks[0].image.values()} == {0}

"""Real QEMUs take what machine/ writes, on the command line and over QMP, without protest."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import commands
from support.smallpair import own_net

from coloctl.errors import PreconditionFailed
from coloctl.host import open_host
from coloctl.lab import qemu
from coloctl.machine import accel, blockdev, chardev, cmdline, device, image, netfilter
from coloctl.model.dialect import Dialect
from coloctl.model.launch import Launch
from coloctl.model.pair import (
    NODES,
    DiskSpec,
    GuestSpec,
    NicSpec,
    NodeName,
    NodeSpec,
    PairSpec,
    ReplicationSpec,
    TapSpec,
)
from coloctl.model.units import MIB
from coloctl.model.wires import Wires
from coloctl.qmp import command as qmp
from coloctl.vm import VM, inspect

pytestmark = pytest.mark.qemu

KILL_DEADLINE_S = 10.0

_numbers = itertools.count(1)

#: Disk and NIC models whose places and options differ.
HARDWARE = [
    ("pc", "virtio-blk-pci", "virtio-net-pci"),
    ("pc", "ide-hd", "e1000"),
    ("q35", "scsi-hd", "virtio-net-pci"),
    ("q35", "ide-hd", "rtl8139"),
]


@pytest.fixture
def build(qemu_build: qemu.Build) -> qemu.Build:
    """Each QEMU of the matrix in its turn."""
    return qemu_build


@pytest.fixture
def rundir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Node a's in a pair's folder; short, because unix sockets lie in it."""
    folder = tmp_path_factory.mktemp("m")
    for node in NODES:
        (folder / node).mkdir()
    return folder / "a"


def firmware_pair(
    folder: Path,
    *,
    machine: str = "pc",
    disk_model: str = "virtio-blk-pci",
    nic_model: str = "virtio-net-pci",
    count: int = 2,
) -> PairSpec:
    """A pair of firmware-only guests, without right or need to touch a network."""
    disks = tuple(
        DiskSpec(
            f"disk{i}", {"a": folder / f"a{i}.img", "b": folder / f"b{i}.img"}, model=disk_model
        )
        for i in range(count)
    )
    nics = tuple(NicSpec(f"hn{i}", f"52:54:00:12:34:5{i}", None, nic_model) for i in range(count))
    # Not 127.0.0.1: trials of a QEMU choose their ports there by chance (`check.pair`).
    here = f"{own_net()}.{next(_numbers)}"
    return PairSpec(
        name="real",
        guest=GuestSpec(memory_mib=32, machine=machine),
        disks=disks,
        nics=nics,
        nodes={node: NodeSpec(node, "local", here) for node in NODES},
        # Away from the demo's ports and from those that the kernel hands out.
        replication=ReplicationSpec(base_port=22600),
    )


async def make_images(pair: PairSpec, build: qemu.Build, rundir: Path) -> None:
    host = open_host("local")
    try:
        made = [path for disk in pair.disks for path in disk.image.values()]
        made += [
            path for over in blockdev.overlays(pair, "b") for path in (over.active, over.hidden)
        ]
        for path in made:
            await image.create_overlay(path, MIB, host.run, qemu_img=build.img)
    finally:
        await host.aclose()


async def describe(
    pair: PairSpec, node: NodeName, build: qemu.Build, rundir: Path
) -> tuple[Launch, Dialect]:
    """The command line of a paused primary on node a, of a secondary on node b."""
    host = open_host("local")
    try:
        dialect = (await inspect(build.binary, host)).dialect
    finally:
        await host.aclose()
    if node == "a":
        launch = cmdline.primary(
            pair, node, dialect, binary=build.binary, accel="tcg", rundir=rundir, paused=True
        )
    else:
        launch = cmdline.secondary(
            pair,
            node,
            dialect,
            binary=build.binary,
            accel="tcg",
            rundir=rundir,
            overlays=blockdev.overlays(pair, node),
        )
    return launch, dialect


@contextlib.asynccontextmanager
async def running(launch: Launch, node: NodeName, rundir: Path) -> AsyncIterator[VM]:
    """That QEMU runs inside the block and is gone behind it."""
    host = open_host("local")
    try:
        vm = await VM.launch(node, host, launch, rundir)
        try:
            yield vm
        finally:
            await vm.kill(KILL_DEADLINE_S)
    finally:
        await host.aclose()


async def names(vm: VM) -> dict[str, set[str]]:
    """What exists in this QEMU, by name, as far as somebody named it."""
    nodes = await vm.execute(qmp.query_named_block_nodes())
    objects = await vm.execute(qmp.Command("qom-list", {"path": "/objects"}))
    chardevs = await vm.execute(qmp.query_chardev())
    return {
        "nodes": {one["node-name"] for one in nodes if not one["node-name"].startswith("#")},
        "objects": {one["name"] for one in objects},
        "chardevs": {one["label"] for one in chardevs},
    }


def ids(described: Iterable[Any]) -> set[str]:
    return {one["id"] for one in described}


async def slots(vm: VM) -> set[tuple[str, int]]:
    """Id and slot of every device that has an id."""
    buses = await vm.execute(qmp.Command("query-pci", {}))
    return {
        (one["qdev_id"], one["slot"]) for bus in buses for one in bus["devices"] if one["qdev_id"]
    }


@pytest.mark.parametrize(("machine", "disk_model", "nic_model"), HARDWARE)
async def test_a_primary_starts_with_its_graphs_and_silently(
    build: qemu.Build, rundir: Path, machine: str, disk_model: str, nic_model: str
) -> None:
    pair = firmware_pair(rundir, machine=machine, disk_model=disk_model, nic_model=nic_model)

    await make_images(pair, build, rundir)
    launch, _ = await describe(pair, "a", build, rundir)
    async with running(launch, "a", rundir) as vm:
        there = await names(vm)
        assert there["nodes"] == {"parent0", "parent1", "colo-disk0", "colo-disk1"}
        for i in (0, 1):
            filters = netfilter.primary_filters(pair, i, status=False)
            assert ids(filters) <= there["objects"]
            for name in netfilter.engage_order(i):
                status = await vm.execute(commands.qom_get(f"/objects/{name}", "status"))
                assert status == "off"
            assert set(chardev.ids_primary(i)) <= there["chardevs"]
        assert {"qmp0", "rescue0", "console0"} <= there["chardevs"]
        wanted = {
            (str(one["id"]), int(one["addr"], 16)) for one in device.devices(pair) if "addr" in one
        }
        assert wanted <= await slots(vm)
    assert (rundir / "qemu.log").read_text() == ""


@pytest.mark.parametrize(("machine", "disk_model", "nic_model"), HARDWARE)
async def test_a_secondary_starts_with_its_graphs(
    build: qemu.Build, rundir: Path, machine: str, disk_model: str, nic_model: str
) -> None:
    pair = firmware_pair(rundir, machine=machine, disk_model=disk_model, nic_model=nic_model)

    await make_images(pair, build, rundir)
    launch, _ = await describe(pair, "b", build, rundir)
    async with running(launch, "b", rundir) as vm:
        there = await names(vm)
        stems = ("parent", "childs", "active", "hidden", "colo-disk")
        assert there["nodes"] == {f"{stem}{i}" for stem in stems for i in (0, 1)}
        for i in (0, 1):
            assert ids(netfilter.secondary_filters(pair, i)) <= there["objects"]
            assert set(chardev.ids_secondary(i)) <= there["chardevs"]
        assert (await vm.execute(qmp.query_status()))["status"] == "inmigrate"
    said = (rundir / "qemu.log").read_text().splitlines()
    # Nobody listens for the two reconnecting clients; that is all there is to say.
    assert [line for line in said if "Unable to connect character device red" not in line] == []


async def test_a_survivor_becomes_a_primary_over_qmp(build: qemu.Build, rundir: Path) -> None:
    """The filters of a secondary go, those of a primary come, twice over; rew0 stays."""
    pair = firmware_pair(rundir, count=1)

    await make_images(pair, build, rundir)
    launch, _ = await describe(pair, "b", build, rundir)
    async with running(launch, "b", rundir) as vm:
        for name in netfilter.secondary_ids_teardown(0):
            await vm.execute(qmp.object_del(name))
        for name in chardev.ids_secondary(0):
            await vm.execute(qmp.chardev_remove(name))
        for _ in range(2):
            for one in chardev.primary(pair, 0, "b", rundir):
                await vm.execute(qmp.chardev_add(one.id, one.backend()))
            for properties in netfilter.primary_filters(
                pair, 0, status=False, behind_rewriter=True
            ):
                await vm.execute(qmp.object_add(properties))
            there = await names(vm)
            assert {*netfilter.primary_ids_teardown(0), "rew0"} <= there["objects"]
            for name in netfilter.primary_ids_teardown(0):
                await vm.execute(qmp.object_del(name))
            for name in chardev.ids_primary(0):
                await vm.execute(qmp.chardev_remove(name))
        there = await names(vm)
        assert "rew0" in there["objects"]
        assert not there["objects"] & set(netfilter.primary_ids_teardown(0))
        assert not there["chardevs"] & set(chardev.ids_primary(0))


async def test_a_secondary_may_find_its_primary_again(build: qemu.Build, rundir: Path) -> None:
    """The dialect's reconnect option is taken by ``chardev-add`` too."""
    pair = firmware_pair(rundir, count=1)

    await make_images(pair, build, rundir)
    launch, dialect = await describe(pair, "a", build, rundir)
    async with running(launch, "a", rundir) as vm:
        for one in chardev.secondary(pair, 0, "a", rundir, dialect):
            await vm.execute(qmp.chardev_add(one.id, one.backend()))
        assert set(chardev.ids_secondary(0)) <= (await names(vm))["chardevs"]


async def test_a_replica_joins_the_quorum(build: qemu.Build, rundir: Path) -> None:
    pair = firmware_pair(rundir, count=1)
    folders: dict[NodeName, Path] = {"a": rundir / "a", "b": rundir / "b"}
    at = Wires(pair, rundir).exports("b")

    for folder in folders.values():
        folder.mkdir()
    await make_images(pair, build, folders["b"])
    one, _ = await describe(pair, "a", build, folders["a"])
    two, _ = await describe(pair, "b", build, folders["b"])
    async with running(one, "a", folders["a"]) as primary, running(two, "b", folders["b"]) as b:
        await b.execute(qmp.nbd_server_start(at))
        await b.execute(qmp.block_export_add("exp0", "parent0", "parent0", writable=True))
        await primary.execute(qmp.blockdev_add(blockdev.nbd_client(0, at)))
        await primary.execute(qmp.x_blockdev_change("colo-disk0", node="nbd0"))
        assert "nbd0" in (await names(primary))["nodes"]
        await primary.execute(qmp.x_blockdev_change("colo-disk0", child="children.1"))
        await primary.execute(qmp.blockdev_del("nbd0"))
        assert "nbd0" not in (await names(primary))["nodes"]


async def test_nothing_at_all_starts_too(build: qemu.Build, rundir: Path) -> None:
    pair = firmware_pair(rundir, count=0)

    for node in ("a", "b"):
        launch, _ = await describe(pair, node, build, rundir)  # type: ignore[arg-type]
        async with running(launch, node, rundir) as vm:  # type: ignore[arg-type]
            assert (await names(vm))["nodes"] == set()


@pytest.mark.parametrize("nic_model", ["virtio-net-pci", "e1000"])
async def test_a_tap_is_opened_with_the_header_that_its_nic_speaks(
    build: qemu.Build, rundir: Path, nic_model: str
) -> None:
    """In a network namespace of its own, which ends with its QEMU."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/net/tun")
    pair = firmware_pair(rundir, nic_model=nic_model, count=1)
    taps = TapSpec({"a": "tap-a", "b": "tap-b"})
    pair = replace(pair, nics=tuple(replace(nic, tap=taps) for nic in pair.nics))
    loopback_up = "import os, sys, pyroute2; pyroute2.IPRoute().link('set', index=1, state='up')"
    prelude = f"{loopback_up}; os.execvp(sys.argv[1], sys.argv[1:])"

    await make_images(pair, build, rundir)
    launch, _ = await describe(pair, "a", build, rundir)
    inside = (
        "unshare",
        *(() if os.geteuid() == 0 else ("--map-root-user",)),  # a chroot refuses that to root
        "--net",
        sys.executable,
        "-c",
        prelude,
    )
    numbered = frozenset(len(inside) + i for i in launch.numbered)
    wrapped = replace(launch, argv=(*inside, *launch.argv), numbered=numbered)
    async with running(wrapped, "a", rundir) as vm:
        found = await vm.execute(
            qmp.Command("human-monitor-command", {"command-line": "info network"})
        )
        assert "ifname=tap-a" in found
        for name in ("m0", "redire0", "redire1", "comp0"):
            told = await vm.execute(commands.qom_get(f"/objects/{name}", "vnet_hdr_support"))
            assert told is (nic_model == "virtio-net-pci")
    assert (rundir / "qemu.log").read_text() == ""


def test_tcg_reaches_the_end_of_the_loop(build: qemu.Build) -> None:
    measured = accel.measure(build.binary, "tcg", loop_deadline_s=60)
    assert (measured.why_not, measured.long_mode) == ("", True)
    assert measured.loop_s is not None
    assert measured.loop_s > 0


def test_a_loop_that_takes_too_long_is_given_up(build: qemu.Build) -> None:
    """As under KVM without hardware: 64-bit mode is reached, the end is not, QEMU is gone."""
    measured = accel.measure(build.binary, "tcg", loop_deadline_s=0)
    assert (measured.long_mode, measured.loop_s) == (True, None)
    assert "loop turns" in measured.why_not


def test_an_accelerator_that_does_not_exist_is_qemu_s_to_refuse(build: qemu.Build) -> None:
    measured = accel.measure(build.binary, "warp")
    assert "warp" in measured.why_not
    assert not measured.long_mode


async def test_images_are_asked_and_made_by_the_build_s_own_tool(
    build: qemu.Build, tmp_path: Path
) -> None:
    host = open_host("local")
    tool = build.img
    try:
        one, two = tmp_path / "one.qcow2", tmp_path / "two, really.qcow2"
        for path in (one, two):
            await image.create_overlay(path, 2 * MIB, host.run, qemu_img=tool)
        found = await image.info(one, host.run, image_format="qcow2", qemu_img=tool)
        assert (found.virtual_size, found.format) == (2 * MIB, "qcow2")
        assert await image.same_content(one, two, "qcow2", host.run, qemu_img=tool)

        raw = tmp_path / "raw.img"
        raw.write_bytes(b"\xff" * MIB)
        assert await image.virtual_size(raw, host.run, qemu_img=tool) == MIB
        for path, wanted in ((raw, "qcow2"), (tmp_path / "absent", "raw"), (tmp_path, "raw")):
            with pytest.raises(PreconditionFailed) as caught:
                await image.info(path, host.run, image_format=wanted, qemu_img=tool)
            assert str(path) in caught.value.message
            assert "qemu-img: " not in caught.value.message
    finally:
        await host.aclose()


async def test_an_image_that_is_made_is_for_its_owner_alone_or_like_the_other(
    build: qemu.Build, tmp_path: Path
) -> None:
    """Whatever the umask is; a returning node's image held the guest's disk for all to read."""
    guest, alone, returned = tmp_path / "guest", tmp_path / "alone", tmp_path / "returned"
    guest.touch()
    guest.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(guest, 65534, 65534)

    async def make() -> None:
        host = open_host("local")
        try:
            for form in ("qcow2", "raw"):
                for path, like in ((alone, None), (returned, guest)):
                    path.unlink(missing_ok=True)
                    await image.create(path, MIB, form, host.run, qemu_img=build.img, like=like)
                    assert path.stat().st_size > 0
                assert (alone.stat().st_mode & 0o777, alone.stat().st_uid) == (0o600, os.geteuid())
                like_it, it = returned.stat(), guest.stat()
                assert (like_it.st_mode, like_it.st_uid) == (it.st_mode, it.st_uid)
            with pytest.raises(PreconditionFailed, match="cannot be made"):
                await image.create(tmp_path / "no" / "a", 1, "raw", host.run, qemu_img=build.img)
        finally:
            await host.aclose()

    before = os.umask(0o022)
    try:
        await make()
    finally:
        os.umask(before)

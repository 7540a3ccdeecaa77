"""Each wire of an encrypted pair on every QEMU of the matrix, also where it holds no COLO here.

Method: the two QEMUs of a pair as `machine.cmdline` describes them, and the sequences of
`colo.plan`, but for COLO itself: the memory goes over by an ordinary migration.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.certificates import Authority
from support.pairs import firmware_spec, make_disks

from coloctl.clock import Deadline
from coloctl.colo import plan, tls
from coloctl.host import open_host
from coloctl.host.channel import channel_pair
from coloctl.lab import qemu
from coloctl.machine import blockdev, cmdline, image
from coloctl.model.dialect import Dialect
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.qapi import MigrationStatus
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.model.wires import MIGRATION_FD, Endpoint, Wires
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import Step, run
from coloctl.qmp.wait import until_migration
from coloctl.vm import VM, inspect

pytestmark = pytest.mark.qemu

WAIT_S = 30.0
NAMES: dict[NodeName, str] = {"a": "hv1", "b": "hv2"}


@dataclass
class Duo:
    """Two QEMUs that hold the certificates of their nodes."""

    wires: Wires
    dialect: Dialect
    a: VM
    b: VM

    @property
    def spec(self) -> PairSpec:
        return self.wires.spec


@contextlib.asynccontextmanager
async def duo(build: qemu.Build, folder: Path) -> AsyncIterator[Duo]:
    """A primary and a secondary of one pair on this host, which meet at TCP ports all the same."""
    spec = firmware_spec(folder, build, "tcg")
    ca = Authority.new()
    for node, name in NAMES.items():
        ca.machine(folder / name, name, spec.nodes[node].address)
    # Another text is another host, and two hosts meet at addresses.
    nodes = {**spec.nodes, "b": replace(spec.nodes["b"], host="netns:none")}
    folders = {node: folder / name for node, name in NAMES.items()}
    spec = replace(spec, nodes=nodes, tls=TlsSpec(TlsMode.ON, folders=folders, names=NAMES))
    await make_disks(spec, build.img)
    async with contextlib.AsyncExitStack() as undo:
        host = open_host("local")
        undo.push_async_callback(host.aclose)
        binary = await inspect(build.binary, host)
        rundirs = {node: folder / "run" / node for node in NODES}
        made = {}
        for node in NODES:
            hosts = dict.fromkeys(NODES, host)
            made[node] = (await tls.placed(spec, hosts, node, rundirs))[node]
        overlays = blockdev.scratch_overlays(spec, folder)
        for over in overlays:
            for path in (over.active, over.hidden):
                size = await image.virtual_size(
                    spec.disks[0].image["b"], host.run, image_format="qcow2", qemu_img=build.img
                )
                await image.create_overlay(path, size, host.run, qemu_img=build.img)
        launches = {
            "a": cmdline.primary(
                spec, "a", binary.dialect, binary=build.binary, accel="tcg", rundir=rundirs["a"],
                paused=True, tls=made["a"],
            ),
            "b": cmdline.secondary(
                spec, "b", binary.dialect, binary=build.binary, accel="tcg", rundir=rundirs["b"],
                overlays=overlays, tls=made["b"],
            ),
        }  # fmt: skip
        vms = {}
        for node in NODES:
            vms[node] = await VM.launch(node, host, launches[node], rundirs[node])
            undo.push_async_callback(vms[node].kill, 10)
        yield Duo(Wires(spec, folder / "run", made), binary.dialect, vms["a"], vms["b"])


def without_colo(steps: plan.Plan) -> plan.Plan:
    """The steps but for the capabilities, one of which is COLO."""
    return tuple(step for step in steps if step.command.execute != "migrate-set-capabilities")


async def connected(vm: VM, chardev: str) -> None:
    """Return once QEMU reports the connection of a chardev."""
    async with asyncio.timeout(WAIT_S):
        while True:
            listed = await vm.execute(qmp.query_chardev())
            names = {str(one["label"]): str(one["filename"]) for one in listed}
            if not names[chardev].startswith("disconnected:"):
                return
            await asyncio.sleep(0.05)


async def test_packets_disks_and_memory_go_over_tls(qemu_build: qemu.Build, tmp_path: Path) -> None:
    async with duo(qemu_build, tmp_path) as pair:
        deadline, spec = Deadline(WAIT_S), pair.spec
        for chardev in ("mirror0", "compare1"):
            await connected(pair.a, chardev)
        await run(
            without_colo(plan.prepare_secondary(pair.wires, "b", pair.dialect)),
            pair.b.monitor, deadline=deadline,
        )  # fmt: skip
        await run(plan.connect_replicas(pair.wires, "b"), pair.a.monitor, deadline=deadline)
        await run(plan.attach_replicas(spec), pair.a.monitor, deadline=deadline)

        at = pair.wires.stream("b")
        assert isinstance(at, Endpoint)
        there, here = await channel_pair(
            pair.b.host, pair.a.host, at, nodelay=True, deadline_s=WAIT_S
        )
        with there, here:
            await pair.b.give(MIGRATION_FD, there)
            await pair.a.give(MIGRATION_FD, here)
        await run(plan.receive(pair.wires, "b"), pair.b.monitor, deadline=deadline)
        await run(
            without_colo(plan.start_migration(pair.wires, "b", pair.dialect, 1000)),
            pair.a.monitor, deadline=deadline,
        )  # fmt: skip
        ends = {MigrationStatus.COMPLETED, MigrationStatus.FAILED}
        reached = await until_migration(pair.a.monitor, ends, WAIT_S)
        assert reached is MigrationStatus.COMPLETED, await pair.b.last_words()


async def test_memory_is_sent_to_no_machine_of_another_name(
    qemu_build: qemu.Build, tmp_path: Path
) -> None:
    async with duo(qemu_build, tmp_path) as pair:
        deadline = Deadline(WAIT_S)
        await run(
            without_colo(plan.prepare_secondary(pair.wires, "b", pair.dialect)),
            pair.b.monitor, deadline=deadline,
        )  # fmt: skip
        await run(
            (Step(qmp.migrate_incoming(pair.wires.stream("b").uri())),),
            pair.b.monitor, deadline=deadline,
        )  # fmt: skip
        ids = pair.wires.tls["a"].ids
        await pair.a.execute(qmp.migrate_set_parameters(tls_creds=ids.client, tls_hostname="hv9"))
        await pair.a.execute(qmp.migrate(pair.wires.stream("b").uri()))
        ends = {MigrationStatus.COMPLETED, MigrationStatus.FAILED}
        reached = await until_migration(pair.a.monitor, ends, WAIT_S)
        assert reached is MigrationStatus.FAILED

"""The node that was promoted last begins the next time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import DIALECTS, make_spec

from coloctl.colo import generation
from coloctl.colo.launch import Ground
from coloctl.errors import PreconditionFailed
from coloctl.host import open_host
from coloctl.model.pair import NODES, DiskSpec, PairSpec
from coloctl.vm import Binary

pytestmark = pytest.mark.unit


def spec_in(folder: Path) -> PairSpec:
    images = {node: folder / f"{node}.qcow2" for node in NODES}
    return replace(make_spec(), disks=(DiskSpec("disk0", images),))


def on_ground(folder: Path, deed: Callable[[Ground], Awaitable[None]]) -> None:
    async def run() -> None:
        host = open_host("local")
        binary = Binary(Path("/usr/bin/qemu"), DIALECTS["reconnect-ms"])
        try:
            await deed(Ground({"a": host, "b": host}, binary, "tcg", folder))
        finally:
            await host.aclose()

    asyncio.run(run())


def test_a_pair_that_never_failed_over_begins_on_node_a(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        found = await generation.read(spec_in(tmp_path), ground.hosts)
        assert found == {"a": 0, "b": 0}
        assert generation.newest(found) == "a"

    on_ground(tmp_path, check)


def test_the_last_to_be_promoted_has_the_newest_disks(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        spec = spec_in(tmp_path)
        for number, node in enumerate(("b", "a", "b"), start=1):
            await generation.write(spec, ground.hosts, node, number)  # type: ignore[arg-type]
            assert generation.newest(await generation.read(spec, ground.hosts)) == node
        assert await generation.read(spec, ground.hosts) == {"a": 2, "b": 3}
        assert {path.name for path in tmp_path.iterdir()} == {
            "a.qcow2.generation",
            "b.qcow2.generation",
        }

    on_ground(tmp_path, check)


def test_what_holds_no_number_is_a_person_s_to_mend(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        (tmp_path / "b.qcow2.generation").write_text("newest\n")
        with pytest.raises(PreconditionFailed, match=r"b\.qcow2\.generation") as failed:
            await generation.read(spec_in(tmp_path), ground.hosts)
        assert failed.value.hint

    on_ground(tmp_path, check)


def test_a_number_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        with pytest.raises(PreconditionFailed, match="cannot be written"):
            await generation.write(spec_in(tmp_path / "absent"), ground.hosts, "b", 1)

    on_ground(tmp_path, check)


def test_devices_and_pairs_without_disks_keep_none(tmp_path: Path) -> None:
    device = DiskSpec("disk0", {node: Path(f"/dev/vg/{node}") for node in NODES})

    async def check(ground: Ground) -> None:
        for disks in ((), (device,)):
            spec = replace(make_spec(), disks=disks)
            await generation.write(spec, ground.hosts, "a", 1)
            assert await generation.read(spec, ground.hosts) == {"a": 0, "b": 0}
        with pytest.raises(PreconditionFailed, match="begins on node a"):
            await generation.write(spec, ground.hosts, "b", 1)
        await generation.write(replace(spec, disks=()), ground.hosts, "b", 1)

    on_ground(tmp_path, check)

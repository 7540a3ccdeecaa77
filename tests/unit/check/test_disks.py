"""Goal: the doctor knows whose disks a start would take, and what a start would refuse.

Method: real files in a folder, with words beside them that are sound, damaged, or of other disks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import FakeHost, make_spec

from coloctl.check import disks
from coloctl.check.finding import Precondition, Severity, guarded
from coloctl.colo import generation, registry
from coloctl.host import open_host
from coloctl.host.base import Completed, Host
from coloctl.model.disk import DiskIdentity
from coloctl.model.pair import NODES, DiskSpec, NodeName, PairSpec

pytestmark = pytest.mark.unit


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PairSpec:
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry"))
    images = {node: tmp_path / f"{node}.qcow2" for node in NODES}
    for image in images.values():
        image.touch()
    return replace(make_spec(), disks=(DiskSpec("disk0", images),))


def examine(
    spec: PairSpec, *words: tuple[NodeName, int], damage: bool = False
) -> list[Precondition]:
    async def run() -> list[Precondition]:
        host = open_host("local")
        hosts: dict[NodeName, Host] = {"a": host, "b": host}
        try:
            for node, number in words:
                await generation.write(spec, hosts, node, number)
            if damage:
                registry.beside(spec.disks[0].image["b"]).write_text("{")
            return await guarded("generation", disks._generation(spec, hosts))
        finally:
            await host.aclose()

    return asyncio.run(run())


def test_of_new_disks_there_is_nothing_to_tell(spec: PairSpec) -> None:
    assert examine(spec) == []


def test_the_node_that_a_start_begins_on_is_named(spec: PairSpec) -> None:
    (found,) = examine(spec, ("a", 1), ("b", 2))
    assert found.severity is Severity.OK
    assert "generation 2" in found.sentence and "begins on node b" in found.sentence


def test_what_a_start_would_refuse_is_an_error_with_the_same_words(spec: PairSpec) -> None:
    (found,) = examine(spec, damage=True)
    assert found.severity is Severity.ERROR
    assert "would be lost" in found.sentence and "--from" in found.hint


async def test_a_device_without_a_lasting_name_is_told() -> None:
    class Nameless(FakeHost):
        async def identify(self, path: Path) -> DiskIdentity:
            return DiskIdentity(f"path:{path}", "boot 1", device=True, stable=False)

    hosts = {node: Nameless(node, []) for node in NODES}
    found = await guarded("generation", disks._generation(make_spec(), hosts))
    assert [one.severity for one in found] == [Severity.WARNING] * 2
    assert all("no name that outlives this boot" in one.sentence for one in found)


async def test_two_devices_of_one_name_are_refused() -> None:
    class Copied(FakeHost):
        async def identify(self, path: Path) -> DiskIdentity:
            return DiskIdentity("partuuid:7", machine="m", device=True)

    hosts = {node: Copied(node, []) for node in NODES}
    (found,) = await guarded("generation", disks._generation(make_spec(), hosts))
    assert found.severity is Severity.ERROR and "partuuid:7" in found.sentence


async def test_an_image_that_every_user_can_read_is_found(tmp_path: Path) -> None:
    """One that lies below a closed folder is not, and neither is a missing one."""
    path = tmp_path / "open" / "a.qcow2"
    path.parent.mkdir(mode=0o755)
    path.touch()
    open_parents = [one for one in tmp_path.parents if one.stat().st_mode & 1]
    async with open_host("local") as host:
        path.chmod(0o600)
        assert not await disks._open_to_all(host, path)
        path.chmod(0o644)
        reachable = {*path.parents[1:]} == {tmp_path, *open_parents} and tmp_path.stat().st_mode & 1
        assert await disks._open_to_all(host, path) == bool(reachable)
        path.parent.chmod(0o700)
        assert not await disks._open_to_all(host, path)
        assert not await disks._open_to_all(host, path.with_name("none"))
    lines = {"a": "644\n755\n755\n", "b": "640\n755\n755\n", "c": "644\n710\n755\n"}
    for said, found in zip(lines.values(), (True, False, False), strict=True):
        assert await disks._open_to_all(Stats(said), path) is found


class Stats(FakeHost):
    """A host whose `stat` shows these modes."""

    def __init__(self, said: str) -> None:
        super().__init__("a", [])
        self.said = said

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        assert argv[0] == "stat"
        return Completed(0, self.said, "")

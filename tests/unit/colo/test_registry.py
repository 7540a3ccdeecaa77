"""Goal: what is known of disks survives the loss of one of its two places, and never goes back.

Method: real files in a folder; one place is harmed, or both are, between a word and the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fakes import make_spec
from support.localhosts import Hosts, on_hosts

from coloctl import paths
from coloctl.colo import generation, registry
from coloctl.colo.generation import Companion, Worth
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.pair import NODES, DiskSpec, PairSpec

pytestmark = pytest.mark.unit


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PairSpec:
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry"))
    images = {node: tmp_path / f"{node}.qcow2" for node in NODES}
    for image in images.values():
        image.touch()
    return replace(make_spec(), disks=(DiskSpec("disk0", images),))


async def of_b(spec: PairSpec, hosts: Hosts) -> Companion:
    return (await generation.read(spec, hosts))["b"]


def folder_of(spec: PairSpec) -> Path:
    """Never asked of the product: what a test breaks there is its own."""
    return spec.disks[0].image["a"].parent / "registry"


def beside(spec: PairSpec) -> Path:
    return registry.beside(spec.disks[0].image["b"])


def test_one_place_is_enough(spec: PairSpec, caplog: pytest.LogCaptureFixture) -> None:
    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "b", 1)
        beside(spec).unlink()
        (beside(spec) / "in the way").mkdir(parents=True)
        await generation.write(spec, hosts, "b", 2)
        assert "kept in one place only" in caplog.text
        assert (await of_b(spec, hosts)).generation == 2
        (beside(spec) / "in the way").rmdir()
        beside(spec).rmdir()
        assert (await of_b(spec, hosts)).generation == 2
        for entry in folder_of(spec).iterdir():
            entry.unlink()
        folder_of(spec).rmdir()
        folder_of(spec).write_text("in the way")
        await generation.write(spec, hosts, "b", 3)
        found = await of_b(spec, hosts)
        assert (found.generation, found.doubt) == (3, "")

    on_hosts(check)


def test_a_registry_that_others_can_change_is_not_believed(spec: PairSpec) -> None:
    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "b", 1)
        folder_of(spec).chmod(0o777)
        await generation.write(spec, hosts, "b", 2)
        assert (await of_b(spec, hosts)).generation == 2
        beside(spec).unlink()
        assert "not known" in (await of_b(spec, hosts)).doubt

    on_hosts(check)


def test_where_neither_can_be_written_it_is_told(spec: PairSpec) -> None:
    async def check(hosts: Hosts) -> None:
        folder_of(spec).write_text("in the way")
        (beside(spec) / "in the way").mkdir(parents=True)
        with pytest.raises(PreconditionFailed, match="cannot be written"):
            await generation.write(spec, hosts, "b", 1)
        assert "cannot be written" in await generation.keep(spec, hosts, "b", 1)

    on_hosts(check)


@pytest.mark.parametrize("late", [Worth.IN_SYNC, Worth.FOLLOWING])
def test_a_word_that_comes_late_changes_nothing(spec: PairSpec, late: Worth) -> None:
    """As that of a pair which entered COLO while its secondary was promoted already."""

    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "b", 4)
        await generation.write(spec, hosts, "b", 3, late)
        found = await of_b(spec, hosts)
        assert (found.generation, found.state) == (4, Worth.IN_SYNC)

    on_hosts(check)


@pytest.mark.parametrize("state", [Worth.DIVERGED, Worth.RESYNC_TARGET])
def test_disks_that_are_left_never_get_an_older_generation(spec: PairSpec, state: Worth) -> None:
    """A supervisor whose journal was lost counts from 0 again."""

    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "b", 4)
        await generation.write(spec, hosts, "b", 0, state)
        found = await of_b(spec, hosts)
        assert (found.generation, found.state) == (4, state)

    on_hosts(check)


def test_words_written_at_once_follow_each_other(spec: PairSpec) -> None:
    async def check(hosts: Hosts) -> None:
        await asyncio.gather(
            *(generation.write(spec, hosts, "b", number) for number in (5, 2, 9, 7, 1))
        )
        found = await of_b(spec, hosts)
        assert found.generation == 9
        (entry,) = folder_of(spec).iterdir()
        assert entry.read_bytes().replace(b" ", b"").count(b'"generation":9') == 1

    on_hosts(check)


def test_an_image_restored_from_a_backup_with_its_companion_is_in_doubt(
    spec: PairSpec, tmp_path: Path
) -> None:
    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "b", 3)
        old = beside(spec).read_bytes()
        await generation.write(spec, hosts, "b", 4)
        beside(spec).write_bytes(old)
        found = await of_b(spec, hosts)
        assert "restored from a backup" in found.doubt and found.bound == 4
        with pytest.raises(PreconditionFailed, match="would be lost"):
            generation.source(await generation.read(spec, hosts))

    on_hosts(check)


def test_new_images_in_the_old_place_are_a_new_pair(spec: PairSpec) -> None:
    """Both were removed with their companions and made anew, as a job does at every run."""

    async def check(hosts: Hosts) -> None:
        for node in NODES:
            await generation.write(spec, hosts, node, 3 + (node == "b"))
            image = spec.disks[0].image[node]
            registry.beside(image).unlink()
            image.rename(image.with_suffix(".old"))
            image.touch()
        found = await generation.read(spec, hosts)
        assert all(one.replaced for one in found.values())
        assert generation.source(found) == "a"
        await generation.write(spec, hosts, "a", 0)
        assert (await generation.read(spec, hosts))["a"] == Companion(
            spec.name, "a", written=True, serial=2
        )

    on_hosts(check)


def test_only_the_newer_disk_was_replaced(spec: PairSpec) -> None:
    """A dead disk and its companion are gone, an empty image was made in its place."""

    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "a", 3)
        await generation.write(spec, hosts, "b", 4)
        image = spec.disks[0].image["b"]
        beside(spec).unlink()
        image.rename(image.with_suffix(".dead"))
        image.touch()
        with pytest.raises(PreconditionFailed, match="since generation 3 would be lost"):
            generation.source(await generation.read(spec, hosts))
        await generation.write(spec, hosts, "a", 4)
        assert generation.source(await generation.read(spec, hosts)) == "a"

    on_hosts(check)


def test_the_name_of_the_registry_s_folder_is_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLOCTL_REGISTRY_DIR", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert paths.registry_dir() == Path("/var/lib/coloctl/disks")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert paths.registry_dir() == tmp_path / "coloctl" / "disks"
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "own"))
    assert paths.registry_dir() == tmp_path / "own"


@pytest.mark.parametrize("harm", [None, "empty", "gone", "unreadable"])
def test_a_promotion_that_ends_with_the_first_place_is_known_or_in_doubt(
    spec: PairSpec, harm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node b is promoted as soon as that is durable beside its image, and its machine dies then."""
    pending = {"disk0": ("/o/active", "/o/hidden", "/o/witness")}

    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "a", 3)
        await generation.write(spec, hosts, "b", 3, Worth.FOLLOWING)
        store, promoted = registry._store, asyncio.Event()

        async def dies(host: Host, path: Path, word: Any) -> PreconditionFailed | None:
            if path.suffix == ".json":
                assert promoted.is_set(), "the registry comes second"
                await asyncio.Event().wait()
            return await store(host, path, word)

        monkeypatch.setattr(registry, "_store", dies)
        writing = asyncio.create_task(
            generation.write(
                spec, hosts, "b", 4, Worth.OVERLAY_PENDING, overlays=pending, durable=promoted.set
            )
        )
        await promoted.wait()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        monkeypatch.undo()
        monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(folder_of(spec)))
        if harm == "empty":
            beside(spec).write_bytes(b"")
        elif harm is not None:
            beside(spec).unlink()
            if harm == "unreadable":
                beside(spec).mkdir()
        found = await generation.read(spec, hosts)
        if harm is None:
            assert (found["b"].state, found["b"].overlays) == (Worth.OVERLAY_PENDING, pending)
            assert generation.source(found) == "b"
            return
        assert found["b"].doubt and found["b"].bound is None
        with pytest.raises(PreconditionFailed, match="would be lost"):
            generation.source(found)

    on_hosts(check)


def test_without_a_place_beside_the_image_the_registry_is_waited_for(spec: PairSpec) -> None:
    told: list[Companion] = []

    async def check(hosts: Hosts) -> None:
        (beside(spec) / "in the way").mkdir(parents=True)
        writing = asyncio.Event()
        await generation.write(spec, hosts, "b", 4, durable=writing.set)
        assert not writing.is_set()  # the end of the call tells it
        told.append(await of_b(spec, hosts))

    on_hosts(check)
    assert told[0].generation == 4


def test_a_record_that_may_not_be_written_yet_waits_with_all_that_it_needs(spec: PairSpec) -> None:
    async def check(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "b", 1)
        for allowed in (False, True):
            reached, may = asyncio.Event(), asyncio.Event()

            async def when(reached: asyncio.Event = reached, may: asyncio.Event = may) -> None:
                reached.set()
                await may.wait()

            writing = asyncio.create_task(generation.write(spec, hosts, "b", 2, when=when))
            await reached.wait()
            assert (await of_b(spec, hosts)).generation == 1
            if allowed:
                may.set()
            else:
                writing.cancel()
            await asyncio.wait({writing})
            assert (await of_b(spec, hosts)).generation == 1 + allowed

    on_hosts(check)

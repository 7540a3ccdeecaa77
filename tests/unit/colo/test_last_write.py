"""Goal: an image that was written to while its pair was down is noticed, and no other is accused.

Method: real files; the pair notes how they lie, then a tool, a start or a bad day touches them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import make_spec
from support.localhosts import Hosts, on_hosts

from coloctl.colo import generation, registry
from coloctl.colo.generation import Worth
from coloctl.errors import PreconditionFailed
from coloctl.model.disk import DiskIdentity, written_since
from coloctl.model.pair import NODES, DiskSpec, PairSpec

pytestmark = pytest.mark.unit

SECOND = 10**9


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PairSpec:
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry"))
    images = {node: tmp_path / f"{node}.raw" for node in NODES}
    for image in images.values():
        image.write_bytes(b"guest" * 1000)
        os.utime(image, ns=(1_700_000_000_123_456_789,) * 2)
    (tmp_path / "backup").write_bytes(b"older" * 1000)
    return replace(make_spec(), disks=(DiskSpec("disk0", images, format="raw"),))


def after_a_stop(spec: PairSpec, touch: Callable[[Path], object]) -> generation.Companions:
    """The pair ran on node a and was stopped; then its image was touched."""
    found: list[generation.Companions] = []

    async def story(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "a", 2)
        await generation.write(spec, hosts, "b", 2, Worth.DIVERGED)
        await generation.rest(spec, hosts, "a")
        touch(spec.disks[0].image["a"])
        found.append(await generation.read(spec, hosts))

    on_hosts(story)
    return found[0]


def overwrite(image: Path) -> None:
    shutil.copyfile(image.with_name("backup"), image)  # the same file, its content is another


def overwrite_with_times(image: Path) -> None:
    overwrite(image)
    shutil.copystat(image.with_name("backup"), image)


def write_a_byte(image: Path) -> None:
    with image.open("r+b") as file:
        file.write(b"x")


def resize(image: Path) -> None:
    before = image.stat()
    os.truncate(image, 4096)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("touch", [overwrite, overwrite_with_times, write_a_byte, resize])
def test_an_image_that_was_written_to_is_in_doubt(
    spec: PairSpec, touch: Callable[[Path], object]
) -> None:
    found = after_a_stop(spec, touch)
    assert "was written to after its guest had ended" in found["a"].doubt
    assert str(spec.disks[0].image["a"]) in found["a"].doubt
    with pytest.raises(PreconditionFailed, match="No node's disks hold the whole guest") as refused:
        generation.source(found)
    assert "--from NODE" in (refused.value.hint or "")


def nothing(image: Path) -> None:
    assert image.exists()


def back_up(image: Path) -> None:
    """It reads the file and puts its times back, as rsync and tar do."""
    before = image.stat()
    shutil.copy(image, image.with_name("saved"))
    os.utime(image, ns=(before.st_atime_ns - 5 * SECOND, before.st_mtime_ns))


def change_owner_and_links(image: Path) -> None:
    image.chmod(0o600)
    os.link(image, image.with_name("linked"))


def lose_fractions(image: Path) -> None:
    """As a filesystem without them does at its next mount."""
    at = image.stat().st_mtime_ns // SECOND * SECOND
    os.utime(image, ns=(at, at))


@pytest.mark.parametrize("touch", [nothing, back_up, change_owner_and_links, lose_fractions])
def test_an_image_that_was_only_read_is_not(
    spec: PairSpec, touch: Callable[[Path], object]
) -> None:
    found = after_a_stop(spec, touch)
    assert (found["a"].doubt, found["a"].generation) == ("", 2)
    assert generation.source(found) == "a"


@pytest.mark.parametrize("lost", ["companion", "registry"])
def test_one_place_remembers_it(spec: PairSpec, tmp_path: Path, lost: str) -> None:
    def harm(image: Path) -> None:
        write_a_byte(image)
        if lost == "companion":
            registry.beside(image).unlink()
        else:
            shutil.rmtree(tmp_path / "registry")

    assert "was written to" in after_a_stop(spec, harm)["a"].doubt


@pytest.mark.parametrize("state", list(Worth))
def test_what_a_guest_wrote_is_never_another_s(spec: PairSpec, state: Worth) -> None:
    """A start writes its word before the guest runs; whatever ends that, no time is compared."""

    async def story(hosts: Hosts) -> None:
        await generation.write(spec, hosts, "a", 2)
        await generation.rest(spec, hosts, "a")
        overlays = {"disk0": ("/o/a", "/o/h", "/o/w")} if state is Worth.OVERLAY_PENDING else {}
        await generation.write(spec, hosts, "a", 2, state, overlays=overlays)
        write_a_byte(spec.disks[0].image["a"])
        assert not (await generation.read(spec, hosts))["a"].doubt
        if state is not Worth.IN_SYNC:  # only whole disks are noted, and no other word is changed
            await generation.rest(spec, hosts, "a")
            write_a_byte(spec.disks[0].image["a"])
            found = (await generation.read(spec, hosts))["a"]
            assert (found.doubt, found.state) == ("", state)

    on_hosts(story)


@pytest.mark.parametrize(
    ("now", "known", "written"),
    [
        ("10 1000000001", "10 1000000001", False),
        ("10 1000000001", "10 1000000002", True),
        ("10 2000000000", "10 1000000002", False),  # seconds, or two of them
        ("10 4000000000", "10 1999999999", True),
        ("11 1", "10 1", True),
        ("", "10 1", False),
        ("10 1", "", False),
        ("10 1", "what is this", False),
        ("10 1", "10", False),
    ],
)
def test_times_are_compared_as_finely_as_they_are_kept(now: str, known: str, written: bool) -> None:
    one = DiskIdentity("file:/a", "inode 1")
    assert written_since(replace(one, rest=now), replace(one, rest=known)) is written
    elsewhere = replace(one, mark="inode 2", rest=now)
    assert not written_since(elsewhere, replace(one, rest=known))

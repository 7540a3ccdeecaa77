"""Images that a QEMU uses are found by its own locks, and nothing overwrites or starts on them.

Goal: whatever a tool was told, the disks of a guest that runs stay as they are. Method: a real QEMU
holds an image, and each way to make, overwrite or start on it is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.moments import Mortal, mortal
from support.pairs import firmware_spec, make_disks

from coloctl.cli.verbs.lab_goods import guest
from coloctl.colo import inuse, launch
from coloctl.colo.inspect import prepare
from coloctl.errors import PairBusy, PreconditionFailed
from coloctl.host import locks, open_host
from coloctl.lab import qemu
from coloctl.lab.sample import disks_beside
from coloctl.machine import blockdev

pytestmark = pytest.mark.qemu


@contextlib.contextmanager
def using(build: qemu.Build, image: Path, form: str) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU whose guest has the image as its disk; it never runs."""
    argv = [
        str(build.binary), "-S", "-display", "none", "-nodefaults", "-accel", "tcg",
        "-blockdev", f"driver=file,filename={image},node-name=f",
        "-blockdev", f"driver={form},file=f,node-name=d", "-device", "virtio-blk-pci,drive=d",
        "-qmp", "stdio",
    ]  # fmt: skip
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            # It answers once its machine is complete; it greets before.
            process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
            process.stdin.flush()
            while b"return" not in process.stdout.readline():
                assert process.poll() is None
            yield process
        finally:
            process.kill()


def made(build: qemu.Build, image: Path, form: str) -> Path:
    subprocess.run([build.img, "create", "-q", "-f", form, image, "16M"], check=True)
    return image


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_image_is_in_use_as_long_as_its_qemu_lives(
    qemu_build: qemu.Build, tmp_path: Path, form: str
) -> None:
    """`qemu-img info` finds nothing wrong with a raw image that a guest writes."""
    image = made(qemu_build, tmp_path / "disk", form)
    link = tmp_path / "link"
    link.symlink_to(image)
    assert locks.user_of(image) is None
    with using(qemu_build, image, form) as process:
        for path in (image, link):
            user = locks.user_of(path)
            assert user is not None and f"process {process.pid} " in user
            with pytest.raises(PreconditionFailed, match="in use by process"):
                locks.require_free(path)
    assert locks.user_of(image) is None


def test_an_image_that_is_not_there_is_free(tmp_path: Path) -> None:
    assert locks.user_of(tmp_path / "none") is None


def test_the_labs_guest_never_replaces_disks_that_a_guest_uses(
    tmp_path: Path,
) -> None:
    build, file = qemu.provide("11.1"), tmp_path / "web.toml"
    disks = {node: made(build, disk, "qcow2") for node, disk in disks_beside(file).items()}
    file.write_text("as it was")
    before = disks["b"].stat().st_ino
    with using(build, disks["b"], "qcow2") as process:
        said = CliRunner().invoke(guest, ["--pair", str(file), "--force"])
    assert isinstance(said.exception, PreconditionFailed)
    assert f"process {process.pid} " in said.exception.message
    assert file.read_text() == "as it was" and disks["b"].stat().st_ino == before


def test_no_secondary_is_made_on_images_or_overlays_that_a_qemu_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    build = qemu.provide("11.1")
    spec = firmware_spec(tmp_path, build, "tcg")
    asyncio.run(make_disks(spec, build.img))

    async def refused(path: Path) -> None:
        ground = await prepare(spec)
        try:
            with using(build, path, "qcow2"):
                with pytest.raises(PreconditionFailed, match=path.name):
                    await launch.launch_secondary(spec, ground, "b", record=None)
                if path in spec.disks[0].image.values():  # before a word is written about it
                    with pytest.raises(PreconditionFailed, match=path.name):
                        await launch.ensure_images(spec, ground, "b")
        finally:
            await launch.sweep(spec, ground, "b")
            await ground.aclose()

    (tmp_path / "s" / spec.name / "b").mkdir(mode=0o700, parents=True)
    asyncio.run(refused(spec.disks[0].image["b"]))
    (overlay,) = blockdev.overlays(spec, "b")
    asyncio.run(refused(made(build, overlay.active, "qcow2")))


def test_a_start_is_refused_where_a_qemu_has_a_disk_of_either_node(tmp_path: Path) -> None:
    build = qemu.provide("11.1")
    spec = firmware_spec(tmp_path, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    hosts = {node: open_host("local") for node in ("a", "b")}

    async def check() -> None:
        await inuse.require_idle(spec, hosts)
        for image in spec.disks[0].image.values():
            with using(build, image, "qcow2"), pytest.raises(PairBusy, match=image.name):
                await inuse.require_idle(spec, hosts)
        for host in hosts.values():
            await host.aclose()

    asyncio.run(check())


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    with mortal(tmp_path, qemu.provide("11.1")) as pair:
        yield pair


def test_from_another_state_folder_no_second_guest_starts(
    pair: Mortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forgotten COLOCTL_STATE_DIR: the second supervisor knows nothing of the first."""
    pair.type("start", str(pair.file))
    pair.mark()
    pair.type("failover", pair.name, "--yes")
    (survivor,) = pair.qemus()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("COLOCTL_STATE_DIR", str(tmp_path / "other"))
        for words in (["--no-protect", "--from", "a", "--yes"], ["--from", "b", "--yes"], []):
            refused = pair.type("start", str(pair.file), *words)
            assert f"in use by process {survivor}" in refused, refused
        assert not (tmp_path / "other" / pair.name).exists()
    assert pair.qemus() == (survivor,) and pair.primary() == "b" and pair.marked()
    assert pair.view()["diagnosis"] == "healthy"

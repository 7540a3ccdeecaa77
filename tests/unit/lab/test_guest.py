"""The initramfs writer, the modules' order, and the cache around the guest."""

from __future__ import annotations

import dataclasses
import stat
import threading
from pathlib import Path

import pytest

from coloctl.errors import ProvisionError
from coloctl.lab import guest, guestbuild, initramfs
from coloctl.lab.initramfs import ArchiveEntry
from coloctl.lab.progress import Report

pytestmark = pytest.mark.unit


def read_archive(data: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """(name, mode, data, device) of every entry, by the kernel's description of the format."""
    found: list[tuple[str, int, bytes, tuple[int, int]]] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        start = at + 110
        name = data[start : start + fields[11]]
        assert name.endswith(b"\0")
        body = (start + fields[11] + 3) & ~3
        content = data[body : body + fields[6]]
        at = (body + fields[6] + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found
        assert (fields[2], fields[3], fields[5]) == (0, 0, 0), "owner root, time zero"
        found.append((name[:-1].decode(), fields[1], content, (fields[9], fields[10])))


def test_an_archive_reads_back_as_it_was_written() -> None:
    data = initramfs.archive(
        [
            initramfs.file("init", b"#!/bin/sh\n", 0o755),
            initramfs.link("bin/sh", "busybox"),
            initramfs.character_device("/dev/console", 5, 1),
            *(initramfs.file(f"sizes/{size}", bytes(size)) for size in range(9)),
        ]
    )
    entries = {name: rest for name, *rest in read_archive(data)}
    assert entries["init"] == [stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0)]
    assert entries["bin/sh"] == [stat.S_IFLNK | 0o777, b"busybox", (0, 0)]
    assert entries["dev/console"] == [stat.S_IFCHR | 0o600, b"", (5, 1)]
    assert all(entries[f"sizes/{size}"][1] == bytes(size) for size in range(9))


def test_folders_come_before_what_lies_in_them_and_once() -> None:
    names = [
        name
        for name, *_ in read_archive(
            initramfs.archive([initramfs.file("a/b/c", b""), initramfs.folder("a", 0o700)])
        )
    ]
    assert names == ["a", "a/b", "a/b/c"]


def test_the_same_entries_give_the_same_bytes_in_any_order() -> None:
    entries = [initramfs.file("b", b"2"), initramfs.file("a", b"1")]
    assert initramfs.archive(entries) == initramfs.archive(reversed(entries))


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="bin/sh"):
        initramfs.archive([initramfs.link("bin/sh", "a"), initramfs.link("/bin/sh", "b")])


def kernel(folder: Path, **modules: str) -> Path:
    """A folder like /lib/modules/VERSION with modules that need what the values say."""
    release = folder / "6.1.0-test"
    for name, needs in modules.items():
        path = release / "kernel" / "drivers" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")
    return release


def modules_dep(entries: list[ArchiveEntry]) -> dict[str, list[str]]:
    text = next(each.data for each in entries if each.path.endswith("modules.dep")).decode()
    lines = (line.partition(":") for line in text.splitlines())
    return {name: needs.split() for name, _, needs in lines}


def test_modules_come_with_all_they_need_and_after_it(tmp_path: Path) -> None:
    release = kernel(
        tmp_path, virtio="virtio_ring", virtio_ring="", net="virtio,failover", failover="", other=""
    )
    assert list(initramfs.module_closure(release, ["net"]))[-1] == "net"
    closure = initramfs.module_closure(release, ["net"])
    assert set(closure) == {"net", "virtio", "virtio_ring", "failover"}
    order = list(closure)
    assert order.index("virtio_ring") < order.index("virtio") < order.index("net")


def test_modules_dep_lists_a_need_before_what_that_needs_in_turn(tmp_path: Path) -> None:
    release = kernel(
        tmp_path, net="virtio,ring", virtio="ring", ring="", **{"virtio-rng": "virtio"}
    )
    closure = initramfs.module_closure(release, ["net", "virtio_rng"])
    table = modules_dep(initramfs.module_entries(release.name, closure))
    assert table["net.ko"] == ["virtio.ko", "ring.ko"]
    assert table["virtio_rng.ko"] == ["virtio.ko", "ring.ko"]
    assert table["ring.ko"] == []


def test_a_module_that_the_kernel_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="e1000"):
        initramfs.module_closure(kernel(tmp_path, net=""), ["e1000"])


def test_the_command_line_says_what_differs_from_the_default() -> None:
    image = guest.GuestImage(Path("k"), Path("i"), "quiet", Path("d"))
    assert image.append_for("10.77.0.10/24") == "quiet coloctl.ip=10.77.0.10/24"
    assert image.append_for(
        "10.77.0.10/24",
        gateway="10.77.0.1",
        syncookies=1,
        loopback=False,
        http_port=80,
        services=True,
    ) == (
        "quiet coloctl.ip=10.77.0.10/24 coloctl.gw=10.77.0.1 coloctl.syncookies=1"
        " coloctl.loopback=0 coloctl.http=80 coloctl.services=1"
    )


def test_anything_in_the_recipe_changes_its_digest() -> None:
    made = guest.recipe()
    changed = [
        dataclasses.replace(made, init=made.init + "\n"),
        dataclasses.replace(made, disk_mib=64),
        dataclasses.replace(made, append="quiet"),
        dataclasses.replace(made, modules=()),
    ]
    assert len({each.digest() for each in [made, *changed]}) == 1 + len(changed)
    assert guest.recipe().digest() == made.digest()


class Builder:
    """Stands in for the real build: counts, and fails while told to."""

    def __init__(self) -> None:
        self.count = 0
        self.error: BaseException | None = None

    def __call__(
        self, folder: Path, recipe: guestbuild.Recipe, qemu_img: Path, report: Report
    ) -> None:
        self.count += 1
        for name in (guestbuild.KERNEL, guestbuild.INITRD, guestbuild.DISK):
            (folder / name).write_text(str(qemu_img))
            if self.error is not None:
                raise self.error


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Builder:
    made = Builder()
    monkeypatch.setattr(guestbuild, "build", made)
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    return made


IMG = Path("/usr/bin/qemu-img")


def test_the_guest_is_built_once(builder: Builder) -> None:
    assert guest.find() is None
    first = guest.provide(qemu_img=IMG)
    assert guest.provide(qemu_img=IMG) == first == guest.find()
    assert builder.count == 1
    assert first.disk.read_text() == str(IMG)


def test_several_at_once_build_once(builder: Builder) -> None:
    threads = [threading.Thread(target=guest.provide, kwargs={"qemu_img": IMG}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builder.count == 1
    assert guest.find() is not None


def test_a_guest_that_lost_a_file_is_built_anew(builder: Builder) -> None:
    guest.provide(qemu_img=IMG).initrd.unlink()
    assert guest.find() is None
    assert guest.provide(qemu_img=IMG).initrd.exists()
    assert builder.count == 2


@pytest.mark.parametrize("error", [ProvisionError("no mirror"), KeyboardInterrupt()])
def test_a_build_that_failed_leaves_nothing_behind(
    builder: Builder, tmp_path: Path, error: BaseException
) -> None:
    builder.error = error
    with pytest.raises(type(error)):
        guest.provide(qemu_img=IMG)
    assert [path.name for path in (tmp_path / "cache" / "guest").iterdir()] == ["lock"]
    builder.error = None
    assert guest.provide(qemu_img=IMG).disk.exists()


def test_a_full_disk_is_a_sentence(builder: Builder) -> None:
    builder.error = OSError(28, "No space left on device")
    with pytest.raises(ProvisionError, match="No space left") as refused:
        guest.provide(qemu_img=IMG)
    assert refused.value.hint


def test_without_qemu_img_the_hint_says_where_to_get_it(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProvisionError, match="qemu-img") as refused:
        guest.provide()
    assert "coloctl lab qemu" in (refused.value.hint or "")
    assert builder.count == 0

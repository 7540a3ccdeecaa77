"""The sample pair file: whatever goes in, a pair file that can be started comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from coloctl import pairfile
from coloctl.errors import LabError
from coloctl.lab import sample
from coloctl.lab.guest import GuestImage
from coloctl.lab.network import Lab
from coloctl.model.pair import MigrationTransport

pytestmark = pytest.mark.unit


@pytest.fixture
def image(tmp_path: Path) -> GuestImage:
    return an_image(tmp_path / "cache")


def an_image(folder: Path) -> GuestImage:
    """A guest whose parts exist, and an executable QEMU beside them."""
    folder.mkdir()
    for part in ("kernel", "initrd", "disk", "qemu"):
        (folder / part).write_text(part)
    (folder / "qemu").chmod(0o755)
    return GuestImage(folder / "kernel", folder / "initrd", "quiet", folder / "disk")


def write(path: Path, image: GuestImage, lab: str = "lab", **options: object) -> Path:
    fixed = {"name": "web", "accel": "tcg", "qemu": image.kernel.with_name("qemu")}
    return sample.write_pair(path, lab=Lab(lab), guest=image, **fixed | options)  # type: ignore[arg-type]


def test_the_pair_file_can_be_started_as_it_is(tmp_path: Path, image: GuestImage) -> None:
    written = write(tmp_path / "new" / "web.toml", image)
    pair = pairfile.load(written)
    pairfile.check_files(pair)
    assert (pair.name, pair.guest.accel, pair.guest.memory_mib) == ("web", "tcg", 256)
    assert pair.guest.append.split() == ["quiet", "coloctl.ip=10.77.0.10/24"]
    assert [pair.nodes[node].host for node in ("a", "b")] == ["netns:host-a", "netns:host-b"]
    assert [pair.nodes[node].address for node in ("a", "b")] == ["10.66.0.1", "10.66.0.2"]
    (disk,) = pair.disks
    assert {path.name for path in disk.image.values()} == {"web-a.qcow2", "web-b.qcow2"}
    assert all(path.read_text() == "disk" for path in disk.image.values())


def test_every_choice_arrives_in_the_pair(tmp_path: Path, image: GuestImage) -> None:
    options = {"channel": "tcp", "base_port": 9100, "checkpoint_delay_ms": 250}
    guest = {"accel": "kvm", "memory": "512MiB", "address": "10.77.0.11/24"}
    written = write(
        tmp_path / "p.toml",
        image,
        lab="other",
        **options | guest,
        append_options={"syncookies": 2, "loopback": False},
    )
    pair = pairfile.load(written)
    assert pair.replication.channel is MigrationTransport.TCP
    assert (pair.replication.base_port, pair.checkpoint.delay_ms) == (9100, 250)
    assert (pair.guest.accel, pair.guest.memory_mib) == ("kvm", 512)
    assert pair.nodes["a"].host == "netns:other-host-a"
    for word in ("coloctl.ip=10.77.0.11/24", "coloctl.syncookies=2", "coloctl.loopback=0"):
        assert word in pair.guest.append.split()


def test_guests_of_one_lab_differ_in_mac_and_disks(tmp_path: Path, image: GuestImage) -> None:
    first = pairfile.load(write(tmp_path / "one.toml", image, name="one"))
    second = pairfile.load(write(tmp_path / "two.toml", image, name="two", address="10.77.0.11/24"))
    assert first.nics[0].mac != second.nics[0].mac
    assert set(first.disks[0].image.values()).isdisjoint(second.disks[0].image.values())


def test_what_was_there_is_replaced(tmp_path: Path, image: GuestImage) -> None:
    written = write(tmp_path / "web.toml", image)
    written.write_text("old")
    (tmp_path / "web-a.qcow2").write_text("old")
    pairfile.check_files(pairfile.load(write(written, image)))
    assert (tmp_path / "web-a.qcow2").read_text() == "disk"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), max_size=20))
def test_any_path_survives_the_file(word: str) -> None:
    image = GuestImage(Path("/k") / f"k{word}", Path("/i"), "quiet", Path("/d"))
    table = sample.guest_table(image, append=f'a="{word}"', qemu=Path("/q") / f"q{word}")
    nodes = {"a": {"address": "127.0.0.1"}, "b": {"address": "127.0.0.2"}}
    document = sample.document(name="web", guest=table, images={"a": "a", "b": "b"}, nodes=nodes)
    guest = pairfile.parse(tomli_w.dumps(document), Path("/")).guest
    assert guest.kernel == image.kernel
    assert guest.qemu == Path("/q") / f"q{word}"
    assert guest.append == f'a="{word}"'


def test_tables_are_laid_over_the_document(tmp_path: Path, image: GuestImage) -> None:
    """Keys of a table are replaced one by one, a list as a whole; the header is the caller's."""
    tables = {"checkpoint": {"delay_ms": 77}, "policy": {"auto_reprotect": False}, "nic": []}
    written = write(tmp_path / "web.toml", image, tables=tables, header="# Ours.\n")
    pair = pairfile.load(written)
    assert (pair.checkpoint.delay_ms, pair.policy.auto_reprotect, pair.nics) == (77, False, ())
    assert pair.replication.base_port == 9000
    assert written.read_text().startswith("# Ours.\nname =")


def test_a_disk_lies_where_the_caller_wants_it(tmp_path: Path, image: GuestImage) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    written = write(tmp_path / "web.toml", image, disks={"b": elsewhere / "b.qcow2"})
    (disk,) = pairfile.load(written).disks
    assert disk.image == {"a": tmp_path / "web-a.qcow2", "b": elsewhere / "b.qcow2"}
    assert (elsewhere / "b.qcow2").read_text() == "disk"


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, image: GuestImage) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="cannot be written") as refused:
        write(tmp_path / "file" / "web.toml", image)
    assert refused.value.hint

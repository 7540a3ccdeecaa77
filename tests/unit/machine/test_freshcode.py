"""Which file a QEMU may load as its plugin, and how a running one shows whether it did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coloctl.errors import PreconditionFailed
from coloctl.machine import freshcode

pytestmark = pytest.mark.unit


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o755)
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(cache))
    file = tmp_path / "qemu"
    file.write_bytes(b"\x7fELF")
    return file


def built(binary: Path) -> Path:
    file = freshcode.place(binary)
    file.parent.mkdir(mode=0o755, exist_ok=True)
    file.write_bytes(b"plugin")
    file.chmod(0o644)
    return file


def test_a_plugin_that_only_its_owner_can_write_is_found(binary: Path) -> None:
    assert freshcode.find(binary) is None
    file = built(binary)
    assert freshcode.find(binary) == file and freshcode.distrust(file) == ""


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_one_that_others_can_write_is_not_loaded(binary: Path, mode: int) -> None:
    file = built(binary)
    file.chmod(mode)
    assert freshcode.find(binary) is None
    assert f"mode {mode:04o}" in freshcode.distrust(file)


def test_one_in_a_folder_that_others_can_write_is_not_loaded(binary: Path) -> None:
    file = built(binary)
    file.parent.chmod(0o777)
    assert freshcode.find(binary) is None
    assert "can be written by others" in freshcode.distrust(file)
    file.parent.parent.chmod(0o777)
    with pytest.raises(PreconditionFailed, match="can be written by others"):
        freshcode.find(binary)


def test_one_of_another_user_is_not_loaded(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = built(binary)
    owner = os.geteuid() + 1
    if os.geteuid() == 0:
        os.chown(file, owner, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert freshcode.find(binary) is None
    assert "belongs to user id" in freshcode.distrust(file)


def test_a_link_is_not_loaded(binary: Path, tmp_path: Path) -> None:
    file = built(binary)
    file.rename(tmp_path / "elsewhere.so")
    file.symlink_to(tmp_path / "elsewhere.so")
    assert freshcode.distrust(file) == f"{file} is not a file."


def test_another_source_or_another_qemu_has_another_file(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = freshcode.place(binary)
    binary.write_bytes(b"\x7fELF of another build")
    second = freshcode.place(binary)
    monkeypatch.setattr(freshcode, "source", lambda: "int other;")
    assert len({first, second, freshcode.place(binary)}) == 3


def test_a_qemu_behind_a_wrapper_counts_with_it(binary: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nexec {binary} "$@"\n')
    first = freshcode.place(wrapper)
    binary.write_bytes(b"\x7fELF of another build")
    assert freshcode.place(wrapper) != first


def test_a_running_qemu_shows_whether_its_code_stays_fresh(binary: Path) -> None:
    tcg, kvm = ["qemu", "-accel", "tcg"], ["qemu", "-accel", "kvm"]
    plugin = freshcode.arguments(freshcode.place(binary))
    assert freshcode.in_force([*tcg, *plugin]) is True
    assert freshcode.in_force(tcg) is False
    assert freshcode.in_force([*tcg, "-plugin", "file=/usr/lib/qemu/plugins/libhowvec.so"]) is False
    assert freshcode.in_force(kvm) is None
    assert freshcode.in_force(["/usr/bin/python3"]) is None
    assert freshcode.in_force([]) is None


def test_a_comma_in_its_path_is_escaped() -> None:
    assert freshcode.arguments(Path("/a,b/x.so")) == ("-plugin", "file=/a,,b/x.so")
    assert freshcode.arguments(None) == ()
    assert freshcode.arguments(Path("/x.so"), log=True) == ("-plugin", "file=/x.so,log=on")

"""Filesystems that fill under a real pair: the guest goes on, and its operator hears the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fullness import flooding_image, small_filesystem, taken
from support.moments import Mortal, mortal

from coloctl import bounded, paths
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def build() -> qemu.Build:
    """The one QEMU of the matrix that can do COLO with every accelerator."""
    return qemu.provide("11.1")


@pytest.fixture
def pair(build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    """A pair whose state folder is a filesystem of 24 MiB."""
    monkeypatch.setenv("NO_COLOR", "1")
    with small_filesystem(tmp_path / "s", 24) as state:
        monkeypatch.setenv("COLOCTL_STATE_DIR", str(state))
        with mortal(tmp_path, build) as pair:
            yield pair


def test_a_guest_that_floods_its_console_fills_nothing(pair: Mortal, build: qemu.Build) -> None:
    for node in "ab":
        flooding_image(pair.file.parent / f"{node}.qcow2", build)
    said = pair.type("start", str(pair.file))
    assert pair.view()["protection"] == "colo", said
    consoles = [paths.pair_dir(pair.name) / node / "console.log" for node in "ab"]
    pair.until(lambda: all(one.stat().st_size > 2 * bounded.LIMIT for one in consoles))
    for one in consoles:
        assert taken(one) <= bounded.LIMIT + (4 << 20)  # and what comes between two looks
    pair.type("checkpoint", pair.name)
    assert pair.view()["protection"] == "colo" and pair.guests() == 1

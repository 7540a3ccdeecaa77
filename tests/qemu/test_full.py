"""Filesystems that fill under a real pair: the guest goes on, and its operator hears the truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fullness import FLOOD, bootable, small_filesystem, taken
from support.moments import Mortal, mortal

from coloctl import bounded, paths
from coloctl.errors import ColoctlError
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
        bootable(pair.file.parent / f"{node}.qcow2", build, FLOOD)
    said = pair.type("start", str(pair.file))
    assert pair.view()["protection"] == "colo", said
    consoles = [paths.pair_dir(pair.name) / node / "console.log" for node in "ab"]
    pair.until(lambda: all(one.stat().st_size > 2 * bounded.LIMIT for one in consoles))
    for one in consoles:
        assert taken(one) <= bounded.LIMIT + (4 << 20)  # and what comes between two looks
    pair.type("checkpoint", pair.name)
    assert pair.view()["protection"] == "colo" and pair.guests() == 1


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_a_supervisor_promotes_whoever_reads_what_it_says(pair: Mortal, reader: str) -> None:
    ours, its = os.pipe()
    if reader == "asleep":  # as a journal that has stopped, or a terminal after Ctrl-S
        os.set_blocking(its, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(its, b"x" * 4096)
        os.set_blocking(its, True)
    argv = [sys.executable, "-P", "-m", "coloctl.cli.main", "run", str(pair.file)]
    running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=its, stderr=its)
    os.close(its)
    if reader == "gone":
        os.close(ours)
    try:
        pair.until(lambda: serves(pair) == "colo")
        pair.mark()
        pair.type("checkpoint", pair.name)
        primary, secondary = pair.qemus()
        os.kill(primary, signal.SIGKILL)
        pair.until(lambda: serves(pair) == "unprotected")
        assert pair.qemus() == (secondary,) and pair.marked() and pair.guests() == 1
        pair.type("stop", pair.name, "--force", "--yes")
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
        if reader == "asleep":
            os.close(ours)


def serves(pair: Mortal) -> str:
    """The state of the pair, empty while nobody answers."""
    try:
        return str(pair.view()["protection"])
    except ColoctlError:
        return ""

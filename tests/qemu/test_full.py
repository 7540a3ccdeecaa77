"""Filesystems that fill under a real pair: the guest goes on, and its operator hears the truth."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest
from support.fullness import (
    FLOOD,
    TOLD_WRITER,
    WRITER,
    Ext4,
    bootable,
    ext4_filesystem,
    filled,
    small_filesystem,
    taken,
)
from support.moments import Mortal, View, mortal, write_pair

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
    """A pair whose state folder is a filesystem of 15 MiB."""
    monkeypatch.setenv("NO_COLOR", "1")
    with small_filesystem(tmp_path / "s", 15) as state:
        monkeypatch.setenv("COLOCTL_STATE_DIR", str(state))
        with mortal(tmp_path, build) as pair:
            yield pair


def test_a_guest_that_floods_its_console_fills_nothing(pair: Mortal, build: qemu.Build) -> None:
    for node in "ab":
        bootable(pair.file.parent / f"{node}.qcow2", build, FLOOD)
    said = pair.type("start", str(pair.file))
    assert pair.view()["protection"] == "colo", said
    consoles = [paths.pair_dir(pair.name) / node / "console.log" for node in "ab"]
    much = 6 * bounded.LIMIT // bounded.SCARCE  # of what a log may take on so small a filesystem
    pair.until(lambda: all(one.stat().st_size > much for one in consoles))
    pair.until(lambda: all(taken(one) < much // 2 for one in consoles))
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


@pytest.fixture
def roomy(build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    """A pair whose images lie together on a filesystem of 48 MiB, and its state elsewhere."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    with small_filesystem(tmp_path / "img", 48), mortal(tmp_path, build) as pair:
        move_images(pair, dict.fromkeys("ab", tmp_path / "img"))
        yield pair


def move_images(pair: Mortal, folders: dict[str, Path]) -> None:
    """The images of ``pair`` lie in these folders, by node."""
    text = pair.file.read_text()
    for node, folder in folders.items():
        text = text.replace(f'{node} = "{node}.qcow2"', f'{node} = "{folder}/{node}.qcow2"')
        shutil.move(pair.file.parent / f"{node}.qcow2", folder / f"{node}.qcow2")
    pair.file.write_text(text)


def images(pair: Mortal) -> dict[str, Path]:
    return {node: pair.file.parent / "img" / f"{node}.qcow2" for node in "ab"}


def run_state(pair: Mortal) -> str:
    """That of the primary, as status has it."""
    return str(next(n["run_state"] for n in pair.view()["nodes"] if n["role"] == "primary"))


def writes(pair: Mortal) -> tuple[int, int]:
    """How many writes the guest was told are done, and how many failed, on either console."""
    said = b""
    for node in "ab":
        console = paths.pair_dir(pair.name) / node / "console.log"
        said += console.read_bytes() if console.exists() else b""
    return said.count(b"w"), said.count(b"E")


def test_a_guest_without_room_stands_still_and_goes_on_by_itself(
    roomy: Mortal, build: qemu.Build
) -> None:
    image = images(roomy)["a"]
    bootable(image, build, WRITER)
    with filled(image.parent):
        roomy.type("start", str(roomy.file), "--no-protect")
        roomy.until(lambda: run_state(roomy) == "io-error")
        roomy.until(lambda: roomy.view()["diagnosis"] == "guest-held")
        said = roomy.type("status", roomy.name)
        assert "io-error" in said and "no room for a write" in " ".join(said.split())
        assert "guest-held" in roomy.type("explain", roomy.name)
        held = writes(roomy)
        time.sleep(1.5)
        assert writes(roomy) == held and run_state(roomy) == "io-error"
    roomy.until(lambda: run_state(roomy) == "running" and writes(roomy)[0] > held[0])
    roomy.until(lambda: roomy.view()["diagnosis"] == "healthy")
    assert writes(roomy)[1] == 0  # the guest has seen no error
    assert "until there was room" in roomy.view()["reason"]
    roomy.type("protect", roomy.name)
    assert roomy.view()["protection"] == "colo"


PLACES = ("state", "a", "b", "both", "tmp")
SITUATIONS = ("idle", "failover", "protection")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_full_filesystem_costs_no_data_and_status_tells_the_truth(
    build: qemu.Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    situation: str,
    place: str,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    folder = {"state": "s", "a": "img-a", "b": "img-b", "both": "img", "tmp": "t"}[place]
    with ExitStack() as stack:
        for name in ("s", "img-a", "img-b", "img", "t"):
            stack.enter_context(small_filesystem(tmp_path / name, 32))
        monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
        monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
        pair = stack.enter_context(mortal(tmp_path, build))
        together = place == "both"
        move_images(pair, {n: tmp_path / ("img" if together else f"img-{n}") for n in "ab"})
        pair.type("start", str(pair.file), *(["--no-protect"] if situation == "protection" else []))
        pair.mark()
        with filled(tmp_path / folder):
            play(pair, situation)
            true_status(pair)
            if place != "state":  # there lies QEMU's log, which tells what is on a disk
                assert pair.marked()
            said = pair.type("stop", pair.name, "--force", "--yes")
            assert "is stopped" in said, said
            assert not paths.pair_dir(pair.name).exists()
        pair.type("start", str(pair.file), "--no-protect")
        assert pair.marked() and pair.guests() == 1


def play(pair: Mortal, situation: str) -> None:
    """What happens while there is no room."""
    if situation == "failover":
        os.kill(pair.qemus()[0], signal.SIGKILL)
        pair.until(lambda: serves(pair) == "unprotected")
    elif situation == "protection":
        pair.type("protect", pair.name)
    else:
        time.sleep(1)


def true_status(pair: Mortal) -> None:
    """What status says of processes and of the guest is so."""
    view = true_processes(pair)
    assert pair.guests() == 1, view
    if view["protection"] == "colo":
        assert len(pair.qemus()) == 2
    elif view["protection"] == "unprotected":
        assert len(pair.qemus()) == 1


def true_processes(pair: Mortal) -> View:
    """What status says of processes is so; answers all that it says."""
    view = pair.view()
    for node in view["nodes"]:
        alive = node["pid"] is not None and Path(f"/proc/{node['pid']}").exists()
        assert (node["presence"] == "alive") == alive, node
    return view


def test_a_state_folder_that_becomes_read_only_keeps_nobody_from_deciding(
    build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ext4 does at an error of its disk: everything open for writing fails from then on."""
    monkeypatch.setenv("NO_COLOR", "1")
    with ext4_filesystem(tmp_path / "s", 32) as state:
        monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
        with write_and_end(tmp_path, build) as pair:
            pair.type("start", str(pair.file))
            pair.mark()
            state.abort()
            before = pair.view()
            os.kill(before["supervisor_pid"], signal.SIGKILL)  # the next one can only read
            pair.until(lambda: serves(pair) and pair.view()["supervisor_pid"] != (
                before["supervisor_pid"]))  # fmt: skip
            assert pair.view()["protection"] == "colo"
            os.kill(pair.qemus()[0], signal.SIGKILL)
            pair.until(lambda: serves(pair) == "unprotected")
            true_status(pair)
            assert pair.view()["unwritten"]
            assert "nothing new is begun" in " ".join(pair.type("status", pair.name).split())
            said = pair.type("stop", pair.name, "--force", "--yes")
            assert "is stopped" in said and "cannot be removed" in said, said
            # QEMU's log, which tells what is on a disk, could not be written there.
            monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "other"))
            pair.type("start", str(pair.file), "--no-protect")
            assert pair.marked() and pair.primary() == "b"


@contextmanager
def write_and_end(folder: Path, build: qemu.Build) -> Iterator[Mortal]:
    """A pair whose folder may not be removed at its end; its QEMUs are."""
    pair = write_pair(folder, build)
    try:
        yield pair
    except BaseException:
        print(pair.log())
        raise
    finally:
        pair.type("stop", pair.name, "--force", "--yes")


#: Set, the tests below play every case; docs/operating.md has what they saw then.
EVERY = "COLOCTL_EVERY_FILESYSTEM" in os.environ


@pytest.mark.parametrize("place", ["both", "both-unwatched", *(["a", "b"] if EVERY else [])])
def test_a_guest_in_colo_that_finds_no_room_loses_nothing(
    build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Its write fails on one node, which is given up; or on both, and was never acknowledged.

    A guest that stands still in COLO makes QEMU abort at its next checkpoint. Who watches is faster
    mostly; a supervisor that is frozen meanwhile is not.
    """
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    both = place.startswith("both")
    folders = {node: tmp_path / ("img" if both else f"img-{node}") for node in "ab"}
    with ExitStack() as stack:
        for folder in sorted(set(folders.values())):
            stack.enter_context(small_filesystem(folder, 80 if both else 48))
        pair = stack.enter_context(mortal(tmp_path, build))
        move_images(pair, folders)
        for node, folder in folders.items():
            bootable(folder / f"{node}.qcow2", build, TOLD_WRITER)
        pair.type("start", str(pair.file))
        mark = (0x5B, 1 << 19, 1 << 16)  # where the guest does not write
        pair.mark(mark)
        with filled(folders["b" if place == "b" else "a"]):
            tell(pair)
            if place == "both-unwatched":
                freeze_until_one_ends(pair)
            pair.until(lambda: serves(pair) == "unprotected")
            if both:
                pair.until(lambda: run_state(pair) == "io-error")
            true_processes(pair)
            assert both or pair.primary() == ("a" if place == "b" else "b")
        done = writes(pair)[0]
        pair.until(lambda: run_state(pair) == "running" and writes(pair)[0] > done)
        pair.until(lambda: pair.view()["diagnosis"] == "healthy")
        assert writes(pair)[1] == 0  # the guest has seen no error
        pair.type("protect", pair.name)
        assert pair.view()["protection"] == "colo" and pair.guests() == 1
        assert pair.marked(mark)


def freeze_until_one_ends(pair: Mortal) -> None:
    """No supervisor sees what happens until a QEMU has ended, or the watcher starts another."""
    view = pair.view()
    os.kill(view["supervisor_pid"], signal.SIGSTOP)
    programs = [Path(f"/proc/{node['pid']}/exe") for node in view["nodes"]]  # a zombie has none
    give_up = time.monotonic() + 4
    while all(one.exists() for one in programs) and time.monotonic() < give_up:
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.kill(view["supervisor_pid"], signal.SIGCONT)


def tell(pair: Mortal) -> None:
    """Press a key of the primary's guest: from then on it writes."""
    keys = [{"type": "qcode", "data": "spc"}]
    pair.qmp(pair.primary(), "send-key", keys=keys)


@pytest.mark.parametrize(
    ("place", "situation"),
    list(product(("a", "b", "both"), SITUATIONS))
    if EVERY
    else [("b", "failover"), ("b", "protection")],
)
def test_a_read_only_image_costs_no_data_and_status_tells_the_truth(
    build: qemu.Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    situation: str,
) -> None:
    """As ext4 does at an error of its disk: everything open for writing fails from then on."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    with ExitStack() as stack:
        disks: dict[str, Ext4] = {}
        for name in {"a": ["img-a", "img-b"], "b": ["img-a", "img-b"], "both": ["img"]}[place]:
            disks[name] = stack.enter_context(ext4_filesystem(tmp_path / name, 48))
        pair = stack.enter_context(mortal(tmp_path, build))
        move_images(pair, {n: tmp_path / ("img" if place == "both" else f"img-{n}") for n in "ab"})
        pair.type("start", str(pair.file), *(["--no-protect"] if situation == "protection" else []))
        pair.mark()
        broken = disks["img" if place == "both" else f"img-{place}"]
        broken.abort()
        play(pair, situation)
        true_status(pair)
        assert pair.marked()
        said = pair.type("stop", pair.name, "--force", "--yes")
        assert "is stopped" in said, said
        assert not paths.pair_dir(pair.name).exists()
        broken.mend()
        said = pair.type("start", str(pair.file), "--no-protect")
        assert pair.marked() and pair.guests() == 1, said

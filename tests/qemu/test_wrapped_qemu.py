"""A pair whose QEMU is started by a site's script: what is fenced is the QEMU, and it is proven."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.moments import Mortal
from support.smallpair import write_small_pair

from coloctl import paths, procfs
from coloctl.chaos.evidence.remains import processes
from coloctl.control.daemon.watcher import watcher_of
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

#: What stands in the script in front of QEMU; ``{qemu}`` is the QEMU, ``{log}`` a file.
SCRIPTS = {
    "nice": 'nice -n 1 {qemu} "$@"; exit $?',
    "logging": '{qemu} "$@" 2>&1 | tee -a {log}',
    "own-session": 'setsid --wait {qemu} "$@"; exit $?',
    "daemon": 'setsid --fork {qemu} "$@"; exit 0',
}


@pytest.fixture(scope="module")
def build() -> qemu.Build:
    return qemu.provide("11.1")


@pytest.fixture
def pair(
    build: qemu.Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Mortal]:
    """A pair file whose QEMU is the script named by the test's parameter."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    script = tmp_path / "bin" / build.binary.name
    script.parent.mkdir()
    words = SCRIPTS[request.param].format(
        qemu=shlex.quote(str(build.binary)), log=shlex.quote(str(tmp_path / "site.log"))
    )
    script.write_text(f"#!/bin/sh\n{words}\n")
    script.chmod(0o755)
    (script.parent / "qemu-img").symlink_to(build.img)
    pair = Mortal(write_small_pair(tmp_path / f"w{os.getpid()}.toml", build, script))
    try:
        yield pair
    finally:
        with contextlib.suppress(Exception):
            pair.type("stop", pair.name, "--force", "--yes")
        left = processes([tmp_path])
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left


def answering(pair: Mortal, node: str) -> int:
    """The process that has the monitor of that QEMU and the guest's disk open."""
    disk = pair.file.parent / f"{node}.qcow2"
    (pid,) = procfs.holding_file([disk]) - {os.getpid()}
    return pid


@pytest.mark.parametrize("pair", SCRIPTS, indirect=True)
def test_a_fence_ends_the_qemu_behind_a_wrapper(pair: Mortal) -> None:
    said = pair.type("start", str(pair.file))
    view = pair.view()
    assert view["protection"] == "colo", said
    pids = {n["name"]: n["pid"] for n in view["nodes"]}
    assert pids == {node: answering(pair, node) for node in "ab"}
    pair.type("failover", pair.name, "--to", "b", "--yes")
    assert pair.view()["protection"] == "unprotected"
    assert answering(pair, "b") == pids["b"]
    assert not procfs.holding_file([pair.file.parent / "a.qcow2"])
    assert list(processes([paths.pair_dir(pair.name) / "a"])) == []
    said = pair.type("stop", pair.name, "--force", "--yes")
    assert not processes([paths.pair_dir(pair.name)]), said
    assert not procfs.holding_file([pair.file.parent / "b.qcow2"])


@pytest.mark.parametrize("pair", ["nice", "daemon"], indirect=True)
def test_what_a_dead_supervisor_left_behind_a_wrapper_is_taken_over(pair: Mortal) -> None:
    pair.type("start", str(pair.file))
    before = pair.view()
    pids = {n["name"]: n["pid"] for n in before["nodes"]}
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    give_up = time.monotonic() + 60
    while True:
        with contextlib.suppress(Exception):
            after = pair.view()
            if after["supervisor_pid"] != before["supervisor_pid"]:
                break
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert {n["name"]: n["pid"] for n in after["nodes"]} == pids
    assert after["protection"] == "colo"
    os.kill(pids["a"], signal.SIGKILL)
    while pair.view()["protection"] != "unprotected":
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert answering(pair, "b") == pids["b"]


@pytest.mark.parametrize("pair", ["logging"], indirect=True)
def test_force_ends_what_nobody_supervises_behind_a_wrapper(pair: Mortal) -> None:
    pair.type("start", str(pair.file))
    view = pair.view()
    for pid in (watcher_of(view["supervisor_pid"]), view["supervisor_pid"]):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    said = pair.type("stop", pair.name, "--force", "--yes")
    assert not processes([paths.pair_dir(pair.name)]), said


@pytest.mark.parametrize("pair", ["nice", "own-session"], indirect=True)
def test_a_probe_behind_a_wrapper_leaves_nothing(pair: Mortal, build: qemu.Build) -> None:
    script = pair.file.parent / "bin" / build.binary.name
    said = pair.type("probe", "--qemu", str(script), "--accel", "tcg", "--full")
    assert "failed over in both directions" in said
    assert not [one for one in processes([script.parent]).values() if "-machine none" in one]

"""What a run left is found, by its folders or its mark; what is a neighbour's is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.livings import forged_qemu

from coloctl import paths
from coloctl.chaos.evidence import remains as sight
from coloctl.chaos.evidence.remains import remains
from coloctl.lab import netns

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    for name in ("netns", "state"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(netns, "RUN", tmp_path / "netns")


def until(true: Callable[[], bool]) -> bool:
    """A program that has just begun may not show its arguments yet."""
    give_up = time.monotonic() + 10
    while not (found := true()) and time.monotonic() < give_up:
        time.sleep(0.01)
    return found


def test_a_run_that_tidied_up_leaves_nothing(tmp_path: Path) -> None:
    assert remains("web", tmp_path / "home", grace_s=0) == []


def test_its_folders_and_namespaces_are_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in (paths.pair_dir("web"), paths.pair_dir("web2"), home):
        folder.mkdir()
    for name in ("web-lan", "web2-lan"):
        (tmp_path / "netns" / name).touch()
    assert remains("web", home, grace_s=0) == [
        "network namespace web-lan is still there",
        f"{paths.pair_dir('web')} is still there",
        f"{home} is still there",
    ]


def test_a_process_is_known_by_its_folder_or_its_mark(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    folder = paths.pair_dir("web")
    marked = {**os.environ, "RUN": "7"}
    with (
        subprocess.Popen([*argv, f"path={folder}/a/qmp.sock,server=on"]) as ours,
        subprocess.Popen([*argv, f"{folder}2/a/qmp.sock"]) as neighbour,
        subprocess.Popen(argv, env=marked) as child,
    ):
        try:
            both = {ours.pid, child.pid}
            assert until(lambda: set(sight.processes([folder], "RUN=7")) == both)
            found = remains("web", grace_s=0)
            assert any(f"process {ours.pid} still runs: " in one for one in found)
            assert not any(f"process {neighbour.pid} " in one for one in found)
        finally:
            for process in (ours, neighbour, child):
                process.kill()
    assert remains("web", grace_s=10) == []


def test_a_port_that_still_listens_in_its_namespace_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netns" / "web-lan").touch()
    monkeypatch.setattr(netns, "inside", lambda _namespace, look: look())
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert f"port {port} still listens in web-lan" in remains("web", grace_s=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become another user")
def test_a_strangers_process_that_names_the_folder_is_nothing_that_was_left(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with forged_qemu(home, uid=65534) as stranger, forged_qemu(home) as ours:
        assert list(sight.processes([home])) == [ours.pid]
        assert stranger.poll() is None

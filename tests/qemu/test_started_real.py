"""A pair goes on with what was found at its start, whatever becomes of the QEMU on disk."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.moments import Mortal, View
from support.smallpair import write_small_pair

from coloctl import paths
from coloctl.chaos.evidence.remains import processes
from coloctl.lab import qemu
from coloctl.supervisor.started import STARTED, remembered

pytestmark = pytest.mark.qemu


class Site:
    """A pair whose QEMU is a script at one path, as a package's binary is a file at one path."""

    def __init__(self, folder: Path, build: qemu.Build) -> None:
        self.log = folder / "calls"
        self.program = folder / "bin" / "qemu-system-x86_64"
        self.program.parent.mkdir()
        (self.program.parent / "qemu-img").symlink_to(build.img)
        self.install(build)
        self.pair = Mortal(write_small_pair(folder / f"w{os.getpid()}.toml", build, self.program))

    def install(self, build: qemu.Build) -> None:
        """Replace the program as a package manager does; each call writes a line to the log."""
        new = self.program.with_suffix(".new")
        log, binary = shlex.quote(str(self.log)), shlex.quote(str(build.binary))
        new.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {binary} "$@"\n')
        new.chmod(0o755)
        new.replace(self.program)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def next_supervisor(self) -> View:
        """Kill the supervisor; return the status that the next one reports."""
        before = self.pair.view()["supervisor_pid"]
        os.kill(before, signal.SIGKILL)

        def another() -> bool:
            with contextlib.suppress(Exception):
                return bool(self.pair.view()["supervisor_pid"] != before)
            return False

        self.pair.until(another)
        return self.pair.view()


@pytest.fixture(scope="module")
def builds() -> dict[str, qemu.Build]:
    return {name: qemu.provide(name) for name in ("10.0", "11.1")}


@pytest.fixture
def site(
    builds: dict[str, qemu.Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    (tmp_path / "full").touch()  # a cache that keeps nothing: each inspection asks the program
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "full"))
    monkeypatch.setenv("NO_COLOR", "1")
    site = Site(tmp_path, builds["11.1"])
    try:
        yield site
    finally:
        with contextlib.suppress(Exception):
            site.pair.type("stop", site.pair.name, "--force", "--yes")
        left = processes([tmp_path])
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left


def test_a_start_inspects_its_qemu_once(site: Site) -> None:
    said = site.pair.type("start", str(site.pair.file))
    assert site.pair.view()["protection"] == "colo", said
    folder = paths.pair_dir(site.pair.name)
    guests = [call for call in site.calls() if str(folder) in call]
    assert len(guests) == 2
    assert len(site.calls()) == len(guests) + 1
    assert (folder / STARTED).stat().st_mode & 0o777 == 0o600
    found = remembered(folder)
    assert found is not None and found.facts is not None
    assert {one.binary.path for one in found.facts.nodes.values()} == {site.program}
    assert found.facts.accel == "tcg"
    view = site.next_supervisor()
    assert view["protection"] == "colo"
    assert len(site.calls()) == 3


def test_a_qemu_that_is_replaced_meanwhile_is_no_end_of_supervision(
    site: Site, builds: dict[str, qemu.Build]
) -> None:
    """The 10.0 on disk is one that a pair under TCG is refused for; the guest runs in 11.1."""
    pair = site.pair
    pair.type("start", str(pair.file), "--no-protect")
    version = pair.view()["nodes"][0]["qemu_version"]
    assert version.startswith("11.1")
    site.install(builds["10.0"])

    view = site.next_supervisor()
    assert view["protection"] == "unprotected"
    assert view["nodes"][0]["qemu_version"] == version
    refused = pair.type("reprotect", pair.name)
    assert f"{site.program} is 10.0" in refused
    assert f"and the guest runs in {version}: both nodes need the same version." in refused

    site.program.unlink()
    assert site.next_supervisor()["protection"] == "unprotected"
    assert str(site.program) in pair.type("reprotect", pair.name)

    site.install(builds["11.1"])
    said = pair.type("reprotect", pair.name)
    assert pair.view()["protection"] == "colo", said

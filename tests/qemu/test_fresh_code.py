"""The fresh-code plugin in real QEMUs: built, refused, and what it keeps a secondary from.

The guest is a boot sector. It writes a distance into a jump, from a clock that differs between the
nodes, and takes the jump until it is time for another distance; where the jump leads tells how far
it went. Each checkpoint puts the primary's distance under the secondary's translation of its own: a
guest that jumps another distance than its memory holds has run stale code, and says `S` on its
serial console.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.smallpair import write_small_pair

from coloctl.check import freshcode as building
from coloctl.errors import ProvisionError
from coloctl.lab import compiler, qemu
from coloctl.machine import freshcode

pytestmark = pytest.mark.qemu

CHECKPOINTS = 12
PATIENCE_S = 60.0

#: In a page, and across the end of one. No other code is in the second page there, so that only
#: the jump itself can tell that it is stale.
PLACES = {"in a page": 0x9200, "across two pages": 0x8FFF}

_numbers = itertools.count(60)


def boot_sector(place: int) -> bytes:
    """The guest, in real mode; ``place`` is where its instruction lies."""
    code = bytes.fromhex(
        "fa 31c0 8ed8 8ed0 bc0070"  # cli; all segments 0; mov $0x7000, %sp
        f"bf {place.to_bytes(2, 'little').hex()}"  # mov $place, %di
        "c605eb"  # movb $0xeb, (%di): a short jump backwards
        "8d5dfa b0f8 b91000"  # lea -6(%di), %bx; mov $-8, %al; mov $16, %cx
        "c607b0 884701 c64702cb"  # fill: a target of the jump: mov $distance, %al; lret
        "2c04 83eb04 e2ef"  # sub $4, %al; sub $4, %bx; loop fill
        "893e437c"  # mov %di, 0x7c43: the target of the call below
        "0f31 66c1e808 240f c0e002 f6d8 04f8"  # rewrite: rdtsc; another distance
        "884501"  # mov %al, 1(%di)
        "b9409c"  # mov $40000, %cx
        "9a00000000"  # again: lcall $0, $place
        "384501 7505"  # cmp %al, 1(%di); jne stale
        "49 75f3 ebdc"  # dec %cx; jnz again; jmp rewrite
        "baf803 b053 ee ebd4"  # stale: mov $0x3f8, %dx; mov $'S', %al; out; jmp rewrite
    )
    return code.ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    return qemu_builds("11.1")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "s"
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(folder))
    yield folder
    coloctl("stop", "fresh", "--force", "--yes")


def coloctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "coloctl.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def protected(tmp_path: Path, build: qemu.Build, place: int) -> str:
    """Start the pair with the boot sector on both disks; answers what `start` said."""
    file = write_small_pair(tmp_path / "fresh.toml", build, number=next(_numbers))
    raw = tmp_path / "disk.raw"
    raw.write_bytes(boot_sector(place).ljust(16 << 20, b"\0"))
    for node in "ab":
        target = str(tmp_path / f"{node}.qcow2")
        subprocess.run([build.img, "convert", "-O", "qcow2", raw, target], check=True)
    done = coloctl("start", str(file))
    assert done.returncode == 0, done
    return done.stdout


def view() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(coloctl("status", "fresh", "-f", "json").stdout)
    return document


def stale(state: Path) -> dict[str, int]:
    """How often each node ran stale code, after so many checkpoints."""
    deadline = time.monotonic() + PATIENCE_S
    while (seen := view())["checkpoints"]["count"] < CHECKPOINTS:
        assert seen["protection"] == "colo" and time.monotonic() < deadline, seen
        time.sleep(0.2)
    consoles = {node: state / "fresh" / node / "console.log" for node in "ab"}
    return {node: console.read_bytes().count(b"S") for node, console in consoles.items()}


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_a_secondary_runs_what_its_memory_holds(
    tmp_path: Path, build: qemu.Build, state: Path, place: int
) -> None:
    building.provide(build.binary)
    assert "demos" not in protected(tmp_path, build, place)
    assert stale(state) == {"a": 0, "b": 0}
    seen = view()
    assert [node["fresh_code"] for node in seen["nodes"]] == [True, True]
    assert seen["stale_code"] == ""
    moved = coloctl("switchover", "fresh", "--yes")
    assert moved.returncode == 0, moved
    assert stale(state) == {"a": 0, "b": 0}


def test_without_the_plugin_the_pair_says_so_and_is_moved_by_force_only(
    tmp_path: Path, build: qemu.Build, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "empty"))
    said = protected(tmp_path, build, PLACES["in a page"])
    assert "for demos" in said and f"coloctl lab plugin --qemu {build.binary}" in said
    # This is the fault that the plugin is for.
    seen = stale(state)
    assert seen["a"] == 0 and seen["b"] > 0
    assert "for demos" in view()["stale_code"]
    assert "for demos" in coloctl("status", "fresh").stdout.replace("\n", " ")
    assert "for demos" in coloctl("explain", "fresh").stdout.replace("\n", " ")
    refused = coloctl("switchover", "fresh", "--yes")
    while refused.returncode == 3:  # a secondary that ran stale code is being made again
        coloctl("wait", "fresh", "--for", "colo")
        refused = coloctl("switchover", "fresh", "--yes")
    assert refused.returncode == 1 and "without the fresh-code plugin" in refused.stderr
    assert view()["protection"] == "colo"
    moved = coloctl("switchover", "fresh", "--yes", "--force")
    assert moved.returncode == 0, moved


@pytest.mark.parametrize("which", ["cc", "tcc"])
def test_either_compiler_makes_what_qemu_takes(
    tmp_path: Path, build: qemu.Build, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    if which == "cc" and compiler.system_cc() is None:
        pytest.skip("this machine has no cc")
    source, built = tmp_path / "fresh-code.c", tmp_path / "fresh-code.so"
    source.write_text(freshcode.source())
    if which == "tcc":
        monkeypatch.setattr(compiler, "system_cc", lambda: None)
    assert compiler.shared_object(source, built) == which
    building.try_out(build.binary, built)


def test_a_qemu_that_lacks_a_symbol_refuses_the_plugin_by_name(
    tmp_path: Path, build: qemu.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    other = freshcode.source().replace("tb_invalidate_phys_range", "tb_invalidate_something")
    monkeypatch.setattr(freshcode, "source", lambda: other)
    with pytest.raises(ProvisionError, match="tb_invalidate_something"):
        building.provide(build.binary)
    assert freshcode.find(build.binary) is None
    assert [file.name for file in (tmp_path / "cache/plugin").iterdir()] == ["lock"]


def test_a_cache_without_room_is_told_in_a_sentence(
    tmp_path: Path, build: qemu.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))

    def full(source: Path, target: Path, **_: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compiler, "shared_object", full)
    with pytest.raises(ProvisionError, match="No space left"):
        building.provide(build.binary)
    assert freshcode.find(build.binary) is None


def test_an_older_qemu_says_which_version_it_has(
    tmp_path: Path, qemu_builds: Callable[[str], qemu.Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ProvisionError, match="API version 7"):
        building.provide(qemu_builds("10.0").binary)


def test_it_is_built_again_when_the_qemu_changes(
    tmp_path: Path, build: qemu.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    wrapper = tmp_path / "qemu-system-x86_64"
    wrapper.write_text(f'#!/bin/sh\nexec {build.binary} "$@"\n')
    wrapper.chmod(0o755)
    first = building.provide(wrapper)
    assert building.provide(wrapper) == first and freshcode.find(wrapper) == first
    wrapper.write_text(f'#!/bin/sh\n# renewed\nexec {build.binary} "$@"\n')
    assert freshcode.find(wrapper) is None
    assert building.provide(wrapper) != first

"""Goal: a QEMU on another machine loads the fresh-code plugin only where that can be trusted there.

Method: the other machine is a folder beside this one's cache; it is asked by real programs.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import DIALECTS, FakeHost

from coloctl import probe_cache
from coloctl.colo import plugin
from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import PreconditionFailed
from coloctl.host.machine import this_machine
from coloctl.host.records import Completed, Machine
from coloctl.machine import freshcode
from coloctl.vm import Binary

pytestmark = pytest.mark.unit


def _run(argv: Sequence[str]) -> Completed:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    return Completed(done.returncode, done.stdout, done.stderr)


class Elsewhere(FakeHost):
    """A machine whose cache is a folder here."""

    def __init__(self, folder: Path, binary: Path) -> None:
        super().__init__("b", [])
        self.build, self.full = probe_cache.identity(binary), False
        self._machine = replace(
            this_machine(), name="hv2", machine_id="f2", boot_id="b2", cache_dir=folder / "hv2"
        )

    @property
    def machine(self) -> Machine:
        return self._machine

    async def fingerprint(self, binary: Path) -> tuple[str, ...]:
        return self.build

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        return await asyncio.to_thread(_run, argv)

    async def put(self, path: Path, content: bytes, mode: int) -> None:
        if self.full:
            raise PreconditionFailed(f"{path} cannot be written: No space left on device.")
        path.parent.mkdir(mode=0o700, parents=True)
        path.write_bytes(content)
        path.chmod(mode)


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cache").mkdir(mode=0o755)
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "qemu"
    file.write_bytes(b"\x7fELF")
    return file


@pytest.fixture
def there(tmp_path: Path, binary: Path) -> Elsewhere:
    return Elsewhere(tmp_path, binary)


def built_here(binary: Path) -> Path:
    file = freshcode.place(binary)
    file.parent.mkdir(mode=0o755)
    file.write_bytes(b"plugin")
    file.chmod(0o644)
    return file


async def test_one_that_was_tried_here_is_put_there_for_the_same_build(
    binary: Path, there: Elsewhere
) -> None:
    assert await plugin.find(there, binary) is None
    own = built_here(binary)
    found = await plugin.find(there, binary)
    assert found == there.machine.cache_dir / "plugin" / own.name
    assert found.read_bytes() == b"plugin"
    own.unlink()
    assert await plugin.find(there, binary) == found


async def test_another_build_gets_none_of_ours(binary: Path, there: Elsewhere) -> None:
    built_here(binary)
    there.build = (f"{binary} 5 17",)
    assert await plugin.find(there, binary) is None
    assert not there.machine.cache_dir.exists()


async def test_a_machine_without_room_goes_without(binary: Path, there: Elsewhere) -> None:
    built_here(binary)
    there.full = True
    assert await plugin.find(there, binary) is None


@pytest.mark.parametrize("harm", ["file", "folder", "link"])
async def test_one_that_others_could_have_written_there_is_not_loaded(
    binary: Path, there: Elsewhere, harm: str
) -> None:
    own = built_here(binary)
    found = await plugin.find(there, binary)
    assert found is not None
    own.unlink()
    if harm == "file":
        found.chmod(0o666)
    elif harm == "folder":
        found.parent.chmod(0o777)
    else:
        found.rename(found.with_suffix(".own"))
        found.symlink_to(found.with_suffix(".own"))
    assert await plugin.find(there, binary) is None


async def test_a_launch_looks_again_and_kvm_needs_none(binary: Path, there: Elsewhere) -> None:
    facts = same_on_both(Binary(binary, DIALECTS["reconnect-ms"]), "tcg")
    nodes = {**facts.nodes, "b": replace(facts.nodes["b"], machine=there.machine)}
    ground = Ground({"b": there}, replace(facts, nodes=nodes), Path("/nowhere"))
    own = built_here(binary)
    assert plugin.known(ground, "a") == own
    assert plugin.known(ground, "b") is None
    again = await plugin.renewed(ground, "b")
    assert plugin.known(again, "b") == there.machine.cache_dir / "plugin" / own.name
    assert await plugin.renewed(ground, "a") is ground
    kvm = replace(ground, facts=replace(ground.facts, accel="kvm"))
    assert plugin.known(await plugin.renewed(kvm, "b"), "b") is None

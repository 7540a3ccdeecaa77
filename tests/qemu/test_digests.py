"""Disks of two machines are compared by digests; nothing is written and nothing is left."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import DISK_BYTES, firmware_spec

from coloctl.colo import digests
from coloctl.colo.ground import Facts, Ground, NodeFacts
from coloctl.host.local import LocalHost
from coloctl.host.machine import this_machine
from coloctl.lab import qemu
from coloctl.machine import image
from coloctl.model.pair import NODES, PairSpec
from coloctl.vm import inspect

pytestmark = pytest.mark.qemu

#: A busy machine has been seen to take seconds for a QEMU's first answer.
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    return qemu_builds("11.1")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the hosts make their folders; what is left in it is left by the comparison.

    Sockets lie in it, whose paths have 107 bytes at most: `tmp_path` is too deep for them.
    """
    with tempfile.TemporaryDirectory(prefix="ct-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
async def ground(build: qemu.Build, tmp_path: Path, folder: Path) -> AsyncIterator[Ground]:
    """Two hosts of this machine, of which node b's counts as another one."""
    hosts = {node: LocalHost() for node in NODES}
    binary = await inspect(build.binary, hosts["a"])
    there = replace(this_machine(), name="hv2", machine_id="f2", boot_id="b2")
    machines = {"a": this_machine(), "b": there}
    nodes = {
        node: NodeFacts(binary, "tcg", image.tool(binary.path), machine=machines[node])
        for node in NODES
    }
    yield Ground(dict(hosts), Facts(nodes, "tcg"), tmp_path)
    for host in hosts.values():
        await host.aclose()


def content(seed: int) -> bytes:
    """A disk with data, zeros that are written out, and more data."""
    return b"".join([bytes([seed]) * 300_000, bytes(1 << 20), b"\2" * 70_000]).ljust(
        DISK_BYTES, b"\0"
    )


def put(spec: PairSpec, build: qemu.Build, node: str, held: bytes, *, sparse: bool) -> None:
    """Write the image of ``node``; its zeros are holes, or are not."""
    path = spec.disks[0].image["a" if node == "a" else "b"]
    raw = path.with_suffix(".bytes")
    raw.write_bytes(held)
    holes = ["-S", "4k"] if sparse else ["-S", "0"]
    words = [build.img, "convert", "-f", "raw", "-O", spec.disks[0].format, *holes, raw, path]
    subprocess.run(words, check=True)


@pytest.mark.parametrize("form", ["qcow2", "raw"])
async def test_what_a_guest_reads_is_compared_and_nothing_else(
    build: qemu.Build, ground: Ground, folder: Path, tmp_path: Path, form: str
) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")
    spec = replace(spec, disks=(replace(spec.disks[0], format=form),))
    put(spec, build, "a", content(1), sparse=True)
    put(spec, build, "b", content(1), sparse=False)
    before = [spec.disks[0].image[node].read_bytes() for node in NODES]
    assert await digests.alike(spec, ground, PATIENCE_S)
    assert [spec.disks[0].image[node].read_bytes() for node in NODES] == before
    put(spec, build, "b", content(1)[:-1] + b"\1", sparse=False)
    assert not await digests.alike(spec, ground, PATIENCE_S)
    spec.disks[0].image["b"].unlink()
    assert not await digests.alike(spec, ground, PATIENCE_S)
    assert not list(folder.iterdir())


async def test_a_comparison_that_takes_too_long_ends_and_leaves_nothing(
    build: qemu.Build, ground: Ground, folder: Path, tmp_path: Path
) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")
    put(spec, build, "a", content(1), sparse=True)
    put(spec, build, "b", content(1), sparse=True)
    with pytest.raises(TimeoutError):
        await digests.alike(spec, ground, 0.05)
    assert not list(folder.iterdir())
    assert not [one for one in Path("/proc").glob("[0-9]*") if _works_in(folder, one)]


def _works_in(folder: Path, process: Path) -> bool:
    with contextlib.suppress(OSError):
        return str(folder).encode() in (process / "cmdline").read_bytes()
    return False

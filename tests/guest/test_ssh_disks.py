"""The disks of a pair over ssh: a device of the other machine, and a first copy that is cut."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import sshhost
from support.pairs import firmware_spec, supervised

from coloctl.errors import ColoctlError
from coloctl.journal import replay
from coloctl.lab import layout, qemu
from coloctl.lab.network import Lab
from coloctl.model.copied import Method
from coloctl.model.pair import DiskSpec, PairSpec
from coloctl.model.protection import Protection
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.model.units import MIB
from coloctl.model.verified import VerifyOutcome
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

SIZE = 24 * MIB


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-dsk") as lab:
        yield lab


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device for the secondary; those of a kernel are in no namespace."""
    (file := tmp_path / "b.raw").touch()
    os.truncate(file, SIZE)
    argv = ["losetup", "-f", "--show", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    yield Path(done.stdout.strip())
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


@pytest.fixture
def there(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the other machine keeps what is to outlive a boot: host-b, with folders of its own."""
    lasting = tmp_path / "there"
    own = {"host-b": {"COLOCTL_REGISTRY_DIR": str(lasting / "disks")}}
    hosts = sshhost.serve(tmp_path / "ssh", {"host-b": lab.host_b}, own)
    for name, value in hosts.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "here" / "disks"))
    return lasting


@pytest.fixture
def spec(
    lab: Lab, tmp_path: Path, device: Path, qemu_builds: Callable[[str], qemu.Build]
) -> PairSpec:
    """A guest of firmware alone; its disk is a file on node a, and a device of host-b."""
    spec = firmware_spec(tmp_path, qemu_builds("11.1"), "tcg", automatic=True, circular=True)
    hosts = {
        "a": (f"netns:{lab.host_a}", layout.REPLICATION_A),
        "b": ("ssh://host-b", layout.REPLICATION_B),
    }
    nodes = {
        node: replace(spec.nodes[node], host=host, address=address)
        for node, (host, address) in hosts.items()
    }
    (image := tmp_path / "a.raw").write_bytes(secrets.token_bytes(SIZE))
    disk = DiskSpec("disk0", {"a": image, "b": device}, format="raw")
    policy = replace(spec.policy, mirror_rate=4 * MIB)
    tls = TlsSpec(mode=TlsMode.OFF)
    return replace(spec, disks=(disk,), nodes=nodes, policy=policy, tls=tls)


async def test_a_first_copy_to_a_device_goes_on_by_difference_after_its_link_was_cut(
    spec: PairSpec, lab: Lab, there: Path, device: Path, tmp_path: Path
) -> None:
    async with supervised(spec) as stage:
        state, link = stage.state, lab.link("replication")
        await stage.start(protected=False)
        bringing = asyncio.create_task(
            acts.reprotect(state, stage.supervisor.watch, stage.supervisor.entered)
        )

        def copied() -> bool:
            """Half of it is copied, and the rate of that is shown."""
            shown = state.view().progress
            if shown is None or shown.step not in ("mirror", "compare") or not shown.total:
                return False
            return (shown.done or 0) * 2 > shown.total and bool(shown.bytes_per_s)

        try:
            await stage.until(copied)
            link.cut()
            with pytest.raises(ColoctlError):
                await bringing
        finally:
            bringing.cancel()
            await asyncio.wait([bringing])
        await stage.until_protection(Protection.UNPROTECTED)
        link.heal()
        await acts.reprotect(state, stage.supervisor.watch, stage.supervisor.entered)
        assert state.protection is Protection.COLO
        records = replay(state.ground.folder / "journal.jsonl").records
        *_, report = (one.data["copied"] for one in records if "copied" in one.data)
        print(report)
        assert report["method"] == Method.DIFFERENCE and report["full"] == SIZE
        assert 0 < report["sent"] < 0.7 * SIZE
        found = await stage.supervisor.verifying.verify()
        assert found.outcome is VerifyOutcome.EQUAL, found
        assert list((there / "disks").glob("*.json"))
        assert not list(tmp_path.glob("b.raw.*")) and not list(
            Path("/dev").glob(f"{device.name}.*")
        )
        await acts.stop(state, force=True)
    assert device.is_block_device() and device.read_bytes() == (tmp_path / "a.raw").read_bytes()
    assert len(list((tmp_path / "here" / "disks").glob("*.json"))) == 1
    assert len(list((there / "disks").glob("*.json"))) == 1

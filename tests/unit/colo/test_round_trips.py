"""The look at two machines takes a few round trips, however much is asked of each.

Method: two real agents, each reached over a stream as over ssh, and files of this machine. What a
QEMU would answer is remembered from before, as on a machine where a pair was started once. Round
trips are counted, not timed.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.dials import PlainDial
from support.fakes import make_spec
from support.rounds import counted

from coloctl import probe_cache
from coloctl.colo.inspect import look, require_files
from coloctl.errors import SpecError
from coloctl.host.remote.host import RemoteHost
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import NODES, DiskSpec, PairSpec
from coloctl.vm import cache_key

pytestmark = pytest.mark.unit

DIALECT = Dialect("11.1.3 (Debian 1:11.1.3-1)", ReturnPath.REQUIRED, "reconnect-ms")
#: The files of the pair file; the QEMU and what is known of it; all other facts.
LOOK_TRIPS = 3


def dial(name: str, folder: Path) -> PlainDial:
    """An agent that keeps its files elsewhere, as one of another machine does."""
    words = ("env", f"COLOCTL_STATE_DIR={folder / name}", sys.executable, "-m")
    return PlainDial((*words, "coloctl.host.agent.main"), name)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PairSpec:
    """Four disks, a kernel and an initrd on each of two machines, and a QEMU for each."""
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    spec = make_spec()
    files = {one: tmp_path / one for one in ("vmlinuz", "initrd", "a", "b", "qemu-img")}
    disks = []
    for number in range(4):
        image = {node: tmp_path / f"{node}{number}.qcow2" for node in NODES}
        for path in image.values():
            path.touch()
        disks.append(DiskSpec(id=f"disk{number}", image=image))
    for path in files.values():
        path.touch(0o755)
    nodes = {
        node: replace(spec.nodes[node], host=f"ssh://hv{number}", qemu=files[node])
        for number, node in enumerate(NODES, 1)
    }
    guest = replace(
        spec.guest, kernel=files["vmlinuz"], initrd=files["initrd"], accel="tcg", user="root"
    )
    return replace(spec, nodes=nodes, disks=tuple(disks), guest=guest)


async def test_a_look_takes_as_few_round_trips_as_its_longest_chain_of_questions(
    spec: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        RemoteHost("ssh://hv1", dial("hv1", tmp_path)) as one,
        RemoteHost("ssh://hv2", dial("hv2", tmp_path)) as two,
    ):
        hosts = {"a": one, "b": two}
        for node, host in hosts.items():
            await host.ready(60)
            binary = spec.nodes[node].qemu
            assert binary is not None
            known = {"dialect": asdict(DIALECT), "machines": {"pc": "pc-i440fx-11.1"}}
            probe_cache.remember(await cache_key(host, binary, "none", "dialect"), known)
        with counted(monkeypatch) as trips:
            facts = await look(spec, hosts)
            took, asked = trips.serial, [what for _, what in trips.asked]
        assert took <= LOOK_TRIPS, trips.asked
        # Each machine is asked for six files, for its QEMU in two ways, and about four disks.
        assert all(sum(what.startswith(name) for what in asked) >= 12 for name in ("hv1", "hv2"))
        assert {facts.nodes[node].binary.path for node in NODES} == {tmp_path / "a", tmp_path / "b"}
        assert facts.nodes["b"].qemu_img == tmp_path / "qemu-img"


async def test_of_several_errors_the_one_of_the_first_key_is_raised(
    spec: PairSpec, tmp_path: Path
) -> None:
    """All are found at once; an operator reads the same sentence each time."""
    assert spec.guest.kernel is not None and spec.guest.initrd is not None
    async with RemoteHost("ssh://hv2", dial("hv2", tmp_path)) as host:
        await host.ready(60)
        missing = replace(spec.guest, kernel=tmp_path / "none", initrd=tmp_path / "none either")
        with pytest.raises(SpecError) as refused:
            await require_files(replace(spec, guest=missing), host, "b")
    assert refused.value.key == "guest.kernel"

"""Goal: a pair's hosts are looked at once, a node's facts are its own, unequal ones are refused.

Method: `inspect` of a binary is replaced by what a binary would answer; the programs that measure
are real, and run on this machine.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fakes import FakeHost, make_spec

from coloctl.clock import Deadline
from coloctl.colo.equal_builds import require_equal, require_same_binary
from coloctl.colo.ground import Facts, Ground, NodeFacts, placed
from coloctl.colo.inspect import (
    accelerator,
    effective,
    find_qemu,
    kvm_trial,
    look,
    prepare,
    require_files,
    require_one_name,
    require_two_identities,
    tcg_measurement,
)
from coloctl.errors import PreconditionFailed, SpecError, UnsupportedQEMU
from coloctl.host import LocalHost, open_host
from coloctl.host.machine import this_machine
from coloctl.host.records import Machine
from coloctl.machine import blockdev
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.procfs import read_stat
from coloctl.vm import Binary

pytestmark = pytest.mark.unit

DIALECT = Dialect("11.1.3 (Debian 1:11.1.3-1)", ReturnPath.REQUIRED, "reconnect-ms")
BINARY = Binary(Path("/opt/no/such/qemu"), DIALECT, {"pc": "pc-i440fx-11.1"})
FACTS = Facts(
    {
        "a": NodeFacts(BINARY, "tcg", Path("qemu-img"), frozenset({Path("/dev/sda")})),
        "b": NodeFacts(replace(BINARY, path=Path("/opt/b/qemu")), "kvm", Path("/opt/b/qemu-img")),
    },
    "tcg",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))


def local_spec(**qemus: Path) -> PairSpec:
    spec = make_spec()
    nodes = {n: replace(one, host="local", qemu=qemus.get(n)) for n, one in spec.nodes.items()}
    return replace(spec, guest=replace(spec.guest, qemu=BINARY.path, accel="tcg"), nodes=nodes)


async def grounds(facts: Facts | None) -> Ground:
    ground = await prepare(local_spec(), facts)
    await ground.aclose()
    return ground


def answers(monkeypatch: pytest.MonkeyPatch, binaries: Mapping[Path, Binary]) -> None:
    """Let the binary at each path be the one there."""

    async def known(path: Path, _host: object) -> Binary:
        return binaries[path]

    monkeypatch.setattr("coloctl.colo.inspect.inspect", known)
    monkeypatch.setattr("coloctl.colo.equal_builds.inspect", known)


async def test_with_facts_nothing_is_asked_again() -> None:
    """Neither the binary, which is gone here, nor whether an image is a device."""
    ground = await grounds(FACTS)
    assert ground.facts == FACTS
    assert ground.node("b").qemu_img == Path("/opt/b/qemu-img")


async def test_without_facts_a_binary_that_is_gone_is_refused() -> None:
    with pytest.raises(UnsupportedQEMU, match="/opt/no/such/qemu"):
        await grounds(None)


async def test_each_node_has_its_own_binary_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    there = replace(BINARY, path=Path("/opt/b/qemu"))
    answers(monkeypatch, {BINARY.path: BINARY, there.path: there})
    spec = local_spec(b=there.path)
    host = open_host("local")
    try:
        facts = await look(spec, {"a": host, "b": host})
    finally:
        await host.aclose()
    assert {node: facts.nodes[node].binary for node in NODES} == {"a": BINARY, "b": there}
    assert facts.accel == "tcg"


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        ("kvm", "kvm", "kvm"),
        ("kvm", "tcg", "tcg"),
        ("tcg", "kvm", "tcg"),
        ("qtest", "qtest", "qtest"),
    ],
)
def test_kvm_is_taken_only_where_both_machines_have_it(a: str, b: str, both: str) -> None:
    assert effective({"a": a, "b": b}) == both


HV1 = replace(this_machine(), name="hv1")
HV2 = replace(HV1, name="hv2", machine_id="f2", boot_id="b2", state_dir=Path("/run/hv2"))
ONE: Mapping[NodeName, Machine] = {"a": HV1, "b": HV1}
TWO: Mapping[NodeName, Machine] = {"a": HV1, "b": HV2}


def unequal(places: Mapping[NodeName, Machine], **b: Any) -> UnsupportedQEMU:
    there = replace(BINARY, path=Path("/opt/b/qemu"), **b)
    with pytest.raises(UnsupportedQEMU) as refused:
        require_equal(local_spec(), {"a": BINARY, "b": there}, places)
    return refused.value


OLD = replace(DIALECT, version="10.0.7 (Debian 1:10.0.7+ds-0)")


def test_two_versions_are_refused_by_the_names_of_both_nodes() -> None:
    refused = unequal(ONE, dialect=OLD)
    assert refused.message == (
        "Node b (/opt/b/qemu) has QEMU 10.0.7 (Debian 1:10.0.7+ds-0) and node a "
        "(/opt/no/such/qemu) has 11.1.3 (Debian 1:11.1.3-1): both need the same version."
    )
    assert "node.b.qemu" in (refused.hint or "")


def test_two_versions_are_refused_by_the_names_of_both_machines() -> None:
    message = unequal(TWO, dialect=OLD).message
    assert "Node b on hv2 has QEMU 10.0.7" in message
    assert "node a on hv1 has 11.1.3" in message


def test_two_patches_of_a_distribution_are_one_version() -> None:
    patched = replace(BINARY, dialect=replace(DIALECT, version="11.1.3 (Debian 1:11.1.3-2)"))
    require_equal(local_spec(), {"a": BINARY, "b": patched}, ONE)


def test_two_builds_of_one_version_are_refused_where_a_feature_differs() -> None:
    refused = unequal(TWO, dialect=replace(DIALECT, pvpanic=False, reconnect="reconnect"))
    assert refused.message == (
        "Node b on hv2 and node a on hv1 have builds of QEMU 11.1.3 that differ in reconnect, "
        "pvpanic."
    )


def test_an_alias_must_be_one_machine_type_for_both() -> None:
    refused = unequal(ONE, machines={"pc": "pc-i440fx-11.0"})
    assert "The machine type pc is pc-i440fx-11.0 for node b (/opt/b/qemu)" in refused.message
    assert 'guest.machine = "pc-i440fx-11.0"' in (refused.hint or "")
    spec = local_spec()
    exact = replace(spec, guest=replace(spec.guest, machine="pc-i440fx-11.0"))
    require_equal(exact, {"a": BINARY, "b": replace(BINARY, machines={})}, TWO)


def test_a_copy_of_a_machine_is_refused_and_two_namespaces_of_one_are_not() -> None:
    require_two_identities(ONE)
    require_two_identities(TWO)
    copy = replace(HV1, name="hv2", machine_id="f1", boot_id="another")
    with pytest.raises(PreconditionFailed, match="hv1 and hv2 have the same /etc/machine-id"):
        require_two_identities({"a": replace(HV1, machine_id="f1"), "b": copy})


class Elsewhere(FakeHost):
    """Another machine: its files are usable unless named otherwise."""

    def __init__(self, **wrong: str) -> None:
        super().__init__("b", [])
        self.wrong = wrong

    @property
    def machine(self) -> Machine:
        return HV2

    async def usable(self, path: Path, mode: int) -> str:
        return self.wrong.get(path.name, "")


async def test_a_file_that_another_machine_lacks_is_named_by_its_key() -> None:
    spec = make_spec(disks=1)
    there = replace(spec.nodes["b"], host="ssh://hv2", kernel=Path("/boot/own"))
    spec = replace(spec, nodes={**spec.nodes, "b": there})
    await require_files(spec, Elsewhere(), "b")
    for name, key in (("own", "node.b.kernel"), (spec.disks[0].image["b"].name, "disk[0].image.b")):
        with pytest.raises(SpecError) as refused:
            await require_files(spec, Elsewhere(**{name: "Permission denied"}), "b")
        assert refused.value.key == key
        assert "on hv2 cannot be used: Permission denied." in refused.value.sentence
    await require_files(spec, Elsewhere(own="gone"), "a")
    absent = {spec.disks[0].image["b"].name: "No such file or directory"}
    await require_files(spec, Elsewhere(**absent), "b")  # it is made there


def test_each_node_has_its_folders_on_its_own_machine() -> None:
    facts = replace(
        FACTS, nodes={node: replace(one, machine=TWO[node]) for node, one in FACTS.nodes.items()}
    )
    ground = Ground({}, facts, HV1.pair_dir("web"))
    assert ground.rundir("a") == HV1.state_dir / "web" / "a"
    assert ground.rundir("b") == Path("/run/hv2/web/b")
    assert not facts.one_machine and FACTS.one_machine
    spec = placed(local_spec(), facts)
    assert blockdev.overlay_folder(spec, "b") == HV2.overlay_dir
    assert spec.nodes["a"].overlay_dir is None
    assert placed(local_spec(), FACTS) == local_spec()


@pytest.mark.parametrize("node", NODES)
async def test_each_binary_on_disk_is_compared_with_that_of_the_start(
    node: NodeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = {one.binary.path: one.binary for one in FACTS.nodes.values()}
    began = FACTS.nodes[node].binary
    ground = await grounds(FACTS)
    answers(monkeypatch, on_disk)
    await require_same_binary(ground)
    renewed = replace(began, dialect=replace(DIALECT, version="11.1.4"))
    answers(monkeypatch, on_disk | {began.path: renewed})
    with pytest.raises(UnsupportedQEMU) as refused:
        await require_same_binary(ground)
    assert f"{began.path} is 11.1.4 now, and the guest runs in 11.1.3" in refused.value.message
    both = {one: replace(ground.node(one), machine=TWO[one]) for one in NODES}
    ground = replace(ground, facts=replace(ground.facts, nodes=both))
    with pytest.raises(UnsupportedQEMU) as refused:
        await require_same_binary(ground)
    assert f"{began.path} on {TWO[node].name} is 11.1.4 now" in refused.value.message


async def test_a_program_measures_on_the_host_and_its_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that is no QEMU runs no guest, under neither accelerator."""
    binary, runs = tmp_path / "qemu", tmp_path / "qemu.runs"
    binary.write_text("#!/bin/sh\necho run >>$0.runs\nexit 3\n")
    binary.chmod(0o755)
    host = open_host("local")
    try:
        trial = await kvm_trial(host, binary)
        assert not trial.real and not trial.tcg.long_mode
        assert "exit code 3" in trial.tcg.why_not
        assert not (await tcg_measurement(host, binary)).long_mode
        assert await accelerator(host, binary, "auto") == "tcg"
        before = runs.read_text()
        assert await accelerator(host, binary, "auto") == "tcg"
        assert runs.read_text() == before
        broken = (sys.executable, "-c", "import sys; sys.exit('no such module')")
        there = replace(this_machine(), name="hv2", programs=broken)
        monkeypatch.setattr(LocalHost, "machine", property(lambda _: there))
        with pytest.raises(PreconditionFailed, match="on hv2: no such module"):
            await tcg_measurement(host, binary)
    finally:
        await host.aclose()


async def test_kvm_that_one_machine_does_not_have_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedQEMU, match=r"/dev/kvm on hv2 cannot be .* No such file"):
        await accelerator(Elsewhere(kvm="No such file or directory"), Path("/q"), "kvm")
    assert await accelerator(Elsewhere(), Path("/q"), "kvm") == "kvm"


async def test_a_bare_name_is_looked_up_on_the_node_s_own_machine() -> None:
    class Finds(Elsewhere):
        async def which(self, program: str) -> Path | None:
            return Path("/usr/libexec") / program if program == "qemu-kvm" else None

    spec = local_spec(b=Path("qemu-kvm"))
    there = replace(spec.nodes["b"], host="ssh://hv2")
    spec = replace(spec, nodes={**spec.nodes, "b": there})
    assert await find_qemu(spec, Finds(), "b") == Path("/usr/libexec/qemu-kvm")
    spec = replace(spec, guest=replace(spec.guest, qemu=None), nodes=make_spec().nodes)
    spec = replace(spec, nodes={**spec.nodes, "b": replace(spec.nodes["b"], host="ssh://hv2")})
    with pytest.raises(UnsupportedQEMU, match="no qemu-system-x86_64 on PATH of hv2"):
        await find_qemu(spec, Finds(), "b")


async def test_a_measurement_that_is_given_up_leaves_no_process_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    binary, pid = tmp_path / "qemu", tmp_path / "qemu.pid"
    binary.write_text("#!/bin/sh\necho $$ >$0.pid\nexec sleep 60\n")
    binary.chmod(0o755)

    async def began() -> bool:
        return pid.exists() and bool(pid.read_text().strip())

    async def over() -> bool:
        return read_stat(int(pid.read_text())) is None

    host = open_host("local")
    try:
        measuring = asyncio.ensure_future(tcg_measurement(host, binary))
        assert await Deadline(30).poll(began, 0.01)
        assert list((tmp_path / "tmp").iterdir())
        measuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measuring
        assert await Deadline(30).poll(over, 0.01)
        assert not list((tmp_path / "tmp").iterdir())
    finally:
        await host.aclose()


def test_two_names_of_one_machine_are_refused() -> None:
    """An agent of another network or state folder of that machine has a place of its own."""
    spec, here = make_spec(), this_machine()
    hosts = {"a": "ssh://hv2", "b": "ssh://root@hv2"}
    nodes = {node: replace(spec.nodes[node], host=hosts[node]) for node in NODES}
    named = replace(spec, nodes=nodes)
    with pytest.raises(PreconditionFailed, match="and the nodes name it in two ways") as caught:
        require_one_name(named, {"a": here, "b": here})
    assert "ssh://hv2 and ssh://root@hv2 are one machine" in caught.value.message
    for other in (
        replace(here, network="1"),
        replace(here, state_dir=Path("/run/user/7/coloctl")),
        replace(here, machine_id="7"),
    ):
        require_one_name(named, {"a": here, "b": other})
    same = {node: replace(spec.nodes[node], host="ssh://hv2") for node in NODES}
    require_one_name(replace(spec, nodes=same), {"a": here, "b": here})

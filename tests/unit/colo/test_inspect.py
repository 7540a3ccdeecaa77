"""Goal: a pair's hosts are looked at once, a node's facts are its own, unequal ones are refused.

Method: `inspect` of a binary is replaced by what a binary would answer; the programs that measure
are real, and run on this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import make_spec

from coloctl.colo.ground import Facts, Ground, NodeFacts
from coloctl.colo.inspect import (
    accelerator,
    effective,
    kvm_trial,
    look,
    prepare,
    require_equal,
    require_same_binary,
    tcg_measurement,
)
from coloctl.errors import PreconditionFailed, UnsupportedQEMU
from coloctl.host import open_host
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import NODES, NodeName, PairSpec
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


def unequal(spec: PairSpec, **b: object) -> UnsupportedQEMU:
    with pytest.raises(UnsupportedQEMU) as refused:
        require_equal(spec, {"a": BINARY, "b": replace(BINARY, path=Path("/opt/b/qemu"), **b)})
    return refused.value


OLD = replace(DIALECT, version="10.0.7 (Debian 1:10.0.7+ds-0)")


def test_two_versions_are_refused_by_the_names_of_both_nodes() -> None:
    refused = unequal(local_spec(), dialect=OLD)
    assert refused.message == (
        "Node b (/opt/b/qemu) has QEMU 10.0.7 (Debian 1:10.0.7+ds-0) and node a "
        "(/opt/no/such/qemu) has 11.1.3 (Debian 1:11.1.3-1): both need the same version."
    )
    assert "node.b.qemu" in (refused.hint or "")


def on_hv2(spec: PairSpec) -> PairSpec:
    return replace(spec, nodes={**spec.nodes, "b": replace(spec.nodes["b"], host="ssh://hv2")})


def test_two_versions_are_refused_by_the_names_of_both_machines() -> None:
    message = unequal(on_hv2(local_spec()), dialect=OLD).message
    assert "Node b on ssh://hv2 has QEMU 10.0.7" in message
    assert "node a on this machine has 11.1.3" in message


def test_two_patches_of_a_distribution_are_one_version() -> None:
    patched = replace(BINARY, dialect=replace(DIALECT, version="11.1.3 (Debian 1:11.1.3-2)"))
    require_equal(local_spec(), {"a": BINARY, "b": patched})


def test_an_alias_must_be_one_machine_type_for_both() -> None:
    refused = unequal(local_spec(), machines={"pc": "pc-i440fx-11.0"})
    assert "The machine type pc is pc-i440fx-11.0 for node b (/opt/b/qemu)" in refused.message
    assert 'guest.machine = "pc-i440fx-11.0"' in (refused.hint or "")
    spec = local_spec()
    exact = replace(spec, guest=replace(spec.guest, machine="pc-i440fx-11.0"))
    require_equal(exact, {"a": BINARY, "b": replace(BINARY, machines={})})


@pytest.mark.parametrize("node", NODES)
async def test_each_binary_on_disk_is_compared_with_that_of_the_start(
    node: NodeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = {one.binary.path: one.binary for one in FACTS.nodes.values()}
    began = FACTS.nodes[node].binary
    ground = await grounds(FACTS)
    answers(monkeypatch, on_disk)
    await require_same_binary(local_spec(), ground)
    renewed = replace(began, dialect=replace(DIALECT, version="11.1.4"))
    answers(monkeypatch, on_disk | {began.path: renewed})
    with pytest.raises(UnsupportedQEMU) as refused:
        await require_same_binary(local_spec(), ground)
    assert f"{began.path} is 11.1.4 now, and the guest runs in 11.1.3" in refused.value.message
    with pytest.raises(UnsupportedQEMU) as refused:
        await require_same_binary(on_hv2(local_spec()), ground)
    where = {"a": "this machine", "b": "ssh://hv2"}[node]
    assert f"{began.path} on {where} is 11.1.4 now" in refused.value.message


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
        assert await accelerator(host, binary, "kvm") == "kvm"
        assert await accelerator(host, binary, "auto") == "tcg"
        before = runs.read_text()
        assert await accelerator(host, binary, "auto") == "tcg"
        assert runs.read_text() == before
        broken = (sys.executable, "-c", "import sys; sys.exit('no such module')")
        monkeypatch.setattr("coloctl.colo.inspect.PROGRAM", broken)
        with pytest.raises(PreconditionFailed, match="on local: no such module"):
            await tcg_measurement(host, binary)
    finally:
        await host.aclose()

"""What is known to break is refused at start, for the combinations of the matrix and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from coloctl.colo.inspect import prepare
from coloctl.colo.known_bugs import (
    KNOWN_BUGS,
    Combination,
    Signs,
    explain,
    threatening,
    version_numbers,
)
from coloctl.colo.refuse import refusals, refuse
from coloctl.errors import UnsupportedQEMU
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import (
    NODES,
    GuestSpec,
    NodeSpec,
    PairSpec,
    ReplicationSpec,
)
from coloctl.vm import Binary

pytestmark = pytest.mark.unit

OLD = Dialect("10.0.13 (Debian 1:10.0.13+ds-0)", ReturnPath.FORBIDDEN, "reconnect-ms")
NEW = Dialect("11.1.3", ReturnPath.REQUIRED, "reconnect-ms")


def pair(machine: str = "pc", multifd: int = 0, accel: str = "auto") -> PairSpec:
    return PairSpec(
        name="web",
        guest=GuestSpec(memory_mib=64, machine=machine, accel=accel, qemu=Path("/opt/qemu")),
        disks=(),
        nics=(),
        nodes={node: NodeSpec(node, "local", "127.0.0.1") for node in NODES},
        replication=ReplicationSpec(multifd_channels=multifd),
    )


@pytest.mark.parametrize(
    ("dialect", "machine", "accel", "multifd", "names"),
    [
        (OLD, "pc", "kvm", 0, []),
        (OLD, "pc", "tcg", 0, ["tcg-deadlock"]),
        (OLD, "q35", "kvm", 0, ["q35-abort"]),
        (OLD, "pc-q35-7.2", "kvm", 0, ["q35-abort"]),
        (OLD, "q35,smm=off", "tcg", 0, ["q35-abort", "tcg-deadlock"]),
        (OLD, "pc", "kvm", 2, ["multifd-corruption"]),
        (NEW, "pc", "tcg", 0, []),
        (NEW, "q35", "tcg", 2, []),
        (NEW, "q35", "kvm", 2, []),
    ],
)
def test_the_matrix(
    dialect: Dialect, machine: str, accel: str, multifd: int, names: list[str]
) -> None:
    found = refusals(pair(machine, multifd), Binary(Path("/opt/qemu"), dialect), accel)
    assert [bug.name for bug in found] == names


def test_a_refusal_names_the_binary_the_bug_and_what_helps() -> None:
    with pytest.raises(UnsupportedQEMU) as refused:
        refuse(pair("q35"), Binary(Path("/opt/qemu"), OLD), "kvm")
    assert "/opt/qemu (10.0.13" in refused.value.message
    assert "secondary aborts" in refused.value.message
    assert "32603ba372" in refused.value.message
    assert refused.value.missing == ("q35-abort",)
    assert 'guest.machine = "pc"' in (refused.value.hint or "")


async def test_a_start_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def known(path: Path, _host: object) -> Binary:
        return Binary(path, OLD)

    monkeypatch.setattr("coloctl.colo.inspect.inspect", known)
    with pytest.raises(UnsupportedQEMU, match="deadlocks"):
        await prepare(pair(accel="tcg"))


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("10.0.0", "completes-instead-of-colo"),
        ("10.0.2 (Debian 1:10.0.2+ds-2)", "completes-instead-of-colo"),
        ("10.0.6", "completes-instead-of-colo"),
        ("10.1.0", "completes-instead-of-colo"),
        ("8.2.2", "coroutine-assertion"),
        ("9.0.0", "coroutine-assertion"),
    ],
)
def test_a_version_alone_is_a_suspicion_and_no_refusal(version: str, name: str) -> None:
    dialect = Dialect(version, ReturnPath.FORBIDDEN, "reconnect")
    assert [bug.name for bug in threatening(Combination(dialect, "kvm"))] == [name]
    assert refusals(pair(), Binary(Path("/opt/qemu"), dialect), "kvm") == []


@pytest.mark.parametrize("version", ["7.2.22", "10.0.7", "10.0.13", "10.1.3", "10.2.2", "unknown"])
def test_versions_outside_the_windows_are_not_suspected(version: str) -> None:
    dialect = Dialect(version, ReturnPath.FORBIDDEN, "reconnect")
    assert threatening(Combination(dialect, "kvm")) == []


def test_a_trial_is_explained_by_what_it_showed() -> None:
    def name(accel: str, machine: str, signs: Signs) -> str | None:
        bug = explain(Combination(OLD, accel, machine), signs)
        return bug.name if bug else None

    assert name("tcg", "pc", Signs(primary_hangs=True)) == "tcg-deadlock"
    assert name("kvm", "q35", Signs(secondary_aborted=True)) == "q35-abort"
    assert name("tcg", "q35", Signs(secondary_aborted=True, primary_hangs=True)) == "q35-abort"
    assert name("kvm", "pc", Signs(migration_completed=True)) == "completes-instead-of-colo"
    asserted = Signs(secondary_aborted=True, words="Assertion `!qemu_in_coroutine()' failed.")
    assert name("kvm", "q35", asserted) == "coroutine-assertion"
    assert name("kvm", "pc", Signs(primary_hangs=True)) is None
    assert name("kvm", "pc", Signs(secondary_aborted=True)) is None


def test_every_bug_says_what_happens_where_and_what_helps() -> None:
    for bug in KNOWN_BUGS:
        assert bug.sentence.endswith(".")
        assert bug.versions.startswith("QEMU ")
        assert bug.hint
        assert any(len(word.strip(",)")) == 10 for word in bug.commit.split())
    assert len({bug.name for bug in KNOWN_BUGS}) == len(KNOWN_BUGS)


def test_versions_compare_as_numbers() -> None:
    assert version_numbers("10.0.13 (Debian 1:10.0.13+ds-0)") == (10, 0, 13)
    assert version_numbers("9.2.0") < version_numbers("10.0.0")
    assert version_numbers("custom") == ()

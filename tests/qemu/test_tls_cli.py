"""An encrypted pair as an operator meets it: doctor, status, a supervisor that follows, renewal.

The pair file's [tls] is used by every verb; the two hosts are namespaces of the lab.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.moments import Mortal
from support.smallpair import put_on_hosts, write_small_pair

from coloctl import paths
from coloctl.lab import layout, qemu
from coloctl.lab.network import Lab
from coloctl.model.encryption import ENCRYPTED

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

NODES = {"a": ("hv1", layout.REPLICATION_A), "b": ("hv2", layout.REPLICATION_B)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-tlscli") as lab:
        yield lab


@pytest.fixture
def ca() -> Authority:
    return Authority.new()


@pytest.fixture
def pair(
    lab: Lab, ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mortal]:
    """A pair of firmware guests on two hosts, each with a certificate of its own."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    file = write_small_pair(tmp_path / "tls.toml", qemu.provide("11.1"))
    tls = '[tls]\nmode = "on"\nfolders = { a = "hv1", b = "hv2" }\n'
    tls += 'names = { a = "hv1", b = "hv2" }\n'
    nic = '[[nic]]\nid = "hn0"\nmac = "52:54:00:c0:10:07"\n'
    nic += f'tap = {{ a = "{layout.TAPS["host-a"]}", b = "{layout.TAPS["host-b"]}" }}\n'
    for name, address in NODES.values():
        ca.machine(tmp_path / name, name, address)
    put_on_hosts(file, lab, nic + tls)
    pair = Mortal(file)
    try:
        yield pair
    finally:
        if paths.pair_dir(pair.name).exists():
            pair.type("stop", pair.name, "--force", "--yes")
        assert not paths.pair_dir(pair.name).exists()


def doctor(pair: Mortal) -> dict[str, list[dict[str, Any]]]:
    """What the doctor finds, by the name of the finding."""
    findings = json.loads(pair.type("doctor", str(pair.file), "-f", "json"))["findings"]
    return {name: [f for f in findings if f["name"] == name] for name in {*map(named, findings)}}


def named(finding: dict[str, Any]) -> str:
    return str(finding["name"])


def serial(pair: Mortal, node: str) -> str:
    """The one serial of the credentials that a node's QEMU has."""
    listed = [one["name"] for one in pair.qmp(node, "qom-list", path="/objects")]
    (found,) = {name.rpartition("-")[2] for name in listed if name.startswith("tls-")}
    return str(found)


def another_supervisor(pair: Mortal) -> None:
    """Kill the supervisor; return once the next one serves the pair."""
    before = pair.view()["supervisor_pid"]
    os.kill(before, signal.SIGKILL)

    def another() -> bool:
        with contextlib.suppress(Exception):
            return bool(pair.view()["supervisor_pid"] != before)
        return False

    pair.until(another)


def test_a_pair_is_encrypted_from_doctor_to_stop_and_renewed_under_another_supervisor(
    pair: Mortal, ca: Authority, tmp_path: Path
) -> None:
    found = doctor(pair)
    assert [one["severity"] for one in found["encryption"]] == ["ok", "ok"]
    assert "as hv2" in found["encryption"][1]["sentence"]
    assert [one["severity"] for one in found["command line"]] == ["ok"], found["command line"]
    planned = pair.type("start", str(pair.file), "--dry-run")
    assert "tls-creds=tls-server-" in planned and '"tls-hostname": "hv2"' in planned

    said = pair.type("start", str(pair.file))
    view = pair.view()
    assert view["protection"] == "colo", said
    assert view["encryption"] == ENCRYPTED
    assert ENCRYPTED in pair.type("status", pair.name, "-e")
    first = {node: serial(pair, node) for node in "ab"}

    another_supervisor(pair)
    pair.mark()
    assert "is the same on both nodes" in pair.type("verify", pair.name)
    assert pair.view()["encryption"] == ENCRYPTED

    for name, address in NODES.values():
        ca.machine(tmp_path / name, name, address)
    pair.type("unprotect", pair.name, "--yes")
    said = pair.type("reprotect", pair.name)
    assert pair.view()["protection"] == "colo", said
    assert all(serial(pair, node) != first[node] for node in "ab")
    assert "is the same on both nodes" in pair.type("verify", pair.name)
    assert pair.marked()

    bundle = tmp_path / "report.tar.gz"
    pair.type("bundle", pair.name, "--output", str(bundle))
    with tarfile.open(bundle) as packed:
        contents = [file.read() for one in packed if (file := packed.extractfile(one))]
    assert any(b"tls-creds" in content for content in contents)
    assert not any(b"PRIVATE KEY" in content for content in contents)
    pair.type("stop", pair.name, "--force", "--yes")
    assert not paths.pair_dir(pair.name).exists()


def test_a_certificate_that_is_wrong_is_found_by_doctor_and_by_start(
    pair: Mortal, ca: Authority, tmp_path: Path
) -> None:
    soon = ca.machine(tmp_path / "hv2", "hv2", layout.REPLICATION_B, age_days=355)
    found = doctor(pair)
    assert [one["severity"] for one in found["encryption"]] == ["ok", "warning"]
    assert "coloctl certs renew hv2" in found["encryption"][1]["hint"]
    ca.machine(soon, "hv9", layout.REPLICATION_B)
    found = doctor(pair)
    (wrong,) = found["encryption"]
    assert wrong["severity"] == "error"
    assert "is for hv9, not for hv2" in wrong["sentence"]
    assert [one["severity"] for one in found["command line"]] == ["info"]
    said = pair.type("start", str(pair.file))
    assert "is for hv9, not for hv2" in said
    assert not paths.pair_dir(pair.name).exists()

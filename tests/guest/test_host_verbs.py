"""`coloctl host` over a real ssh, on machines of the lab: what an operator types, and what is left.

Each machine of the lab has its own files; ssh is the lab's, by COLOCTL_SSH.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import sshhost
from support.fakes import FakeHost, make_spec

from coloctl.cli.verbs import cli
from coloctl.colo import inspect
from coloctl.errors import ColoctlError
from coloctl.lab.machine import LabMachine
from coloctl.lab.machine_layout import ADDRESSES
from coloctl.lab.machines import Machines

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

NAME = f"t{os.getpid()}-h"
#: The certificate and the agent of a machine.
TLS, ZIPS = "/etc/coloctl/tls", "/var/cache/coloctl/agent"
ACCOUNT = "coloctl-qemu"
HV1, HV2 = "10.66.0.1", "10.66.0.2"


@pytest.fixture(scope="module")
def lab() -> Iterator[Machines]:
    with Machines.up(NAME) as standing:
        yield standing


@pytest.fixture(autouse=True)
def config(lab: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("COLOCTL_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("COLOCTL_SSH", shlex.join(lab.ssh()))
    yield tmp_path
    lab.heal()
    for machine in lab.machines.values():
        inside(machine, "rm", "-rf", TLS)


def inside(machine: LabMachine, *argv: str) -> str:
    with machine.popen(argv, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=60)
    return str(out)


def host(*words: str) -> Result:
    return CliRunner().invoke(cli, ["host", *words], standalone_mode=False)


def findings(*words: str) -> dict[str, Any]:
    result = host(*words, "-f", "json")
    assert result.exception is None, result.exception
    return {one["name"]: one for one in json.loads(result.stdout)["findings"]}


def refusal(*words: str) -> ColoctlError:
    error = host(*words).exception
    assert isinstance(error, ColoctlError) and error.hint
    return error


def test_a_machine_gets_its_own_certificate_and_loses_it_again(lab: Machines, config: Path) -> None:
    there = lab.machines["hv1"]
    found = findings("add", "hv1", "ssh://hv1", "--address", HV1)
    assert found["agent"]["severity"] == "ok" and "hv1 has Python 3" in found["agent"]["sentence"]
    assert found["certificate"]["severity"] == "ok"
    listing = inside(there, "stat", "-c", "%a %n", TLS, *(f"{TLS}/{one}" for one in FILES))
    assert [line.split()[0] for line in listing.splitlines()] == ["700", "600", "600", "600"]
    own = (config / "ca/machines/hv1/cert.pem").read_text()
    assert inside(there, "cat", f"{TLS}/cert.pem") == own
    checked = findings("check", "hv1")
    assert checked["certificate"]["severity"] == checked["address"]["severity"] == "ok"
    assert checked["bridges"]["sentence"] == "Bridge br0 on hv1 forwards at once: it runs no STP."
    assert "hv1  ssh://hv1  10.66.0.1" in host("list").output
    assert "off the list" in host("remove", "hv1").output
    assert not inside(there, "sh", "-c", f"ls -d {TLS} {ZIPS} 2>/dev/null")
    assert "No machine was added" in host("list").output


def test_a_machine_gets_the_account_of_qemu_and_keeps_it(lab: Machines, config: Path) -> None:
    there = lab.machines["hv1"]
    inside(there, "userdel", ACCOUNT)
    planned = findings("add", "hv1", "ssh://hv1", "--dry-run")
    assert planned["account"]["sentence"] == f"The account {ACCOUNT} is made on hv1."
    assert not inside(there, "getent", "passwd", ACCOUNT)
    (config / "ca").write_text("in the way of the certificate")
    refusal("add", "hv1", "ssh://hv1")
    (config / "ca").unlink()
    assert not inside(there, "getent", "passwd", ACCOUNT)
    made = findings("add", "hv1", "ssh://hv1")["account"]
    assert made["severity"] == "ok" and "the account was made" in made["sentence"]
    entry = inside(there, "getent", "passwd", ACCOUNT).strip().split(":")
    assert (entry[5], entry[6]) == ("/nonexistent", "/usr/sbin/nologin")
    assert inside(there, "id", "-Gn", ACCOUNT).split() == [ACCOUNT]
    assert "QEMU runs as coloctl-qemu" in findings("check", "hv1")["account"]["sentence"]
    host("remove", "hv1")
    assert inside(there, "getent", "passwd", ACCOUNT)


def test_a_user_who_is_not_root_is_told_where_the_certificate_is(
    lab: Machines, config: Path
) -> None:
    found = findings("add", "hv1", "ssh://operator@hv1", "--address", HV1)
    assert found["certificate"]["severity"] == "warning"
    assert str(config / "ca/machines/hv1") in found["certificate"]["sentence"]
    assert "tls" in found["certificate"]["hint"]
    assert found["root"]["severity"] == "warning" and found["account"]["severity"] == "info"


def test_a_machine_gets_a_qemu_for_its_pairs_and_loses_it_again(
    lab: Machines, config: Path
) -> None:
    there, folder = lab.machines["hv1"], "/var/lib/coloctl/qemu"
    binary = f"{folder}/11.1/bin/qemu-system-x86_64"
    planned = findings("add", "hv1", "ssh://hv1", "--qemu", "11.1", "--dry-run")["qemu"]
    assert planned["sentence"] == f"QEMU 11.1 is sent to hv1, to {folder}/11.1."
    assert "no QEMU 9.9 to send" in refusal("add", "hv1", "ssh://hv1", "--qemu", "9.9").message
    missing = refusal("add", "hv1", "ssh://hv1", "--qemu", "/nowhere/qemu").message
    assert missing == "/nowhere/qemu on hv1 cannot be run: No such file or directory."

    inside(there, "sh", "-c", f"mkdir -p /var/lib/coloctl && touch {folder}")
    error = refusal("add", "hv1", "ssh://hv1", "--qemu", "11.1")
    assert "hv1 did not take the QEMU" in error.message
    assert not list(config.iterdir())
    inside(there, "rm", folder)

    sent = findings("add", "hv1", "ssh://hv1", "--qemu", "11.1")["qemu"]
    assert sent["severity"] == "ok" and sent["sentence"].endswith(f"is on hv1: {binary}.")
    as_qemu = ("setpriv", "--reuid=coloctl-qemu", "--clear-groups", "--inh-caps=-all")
    assert "QEMU emulator version 11.1" in inside(there, *as_qemu, binary, "--version")
    assert binary in host("list").output
    spec = make_spec()
    nodes = {**spec.nodes, "a": replace(spec.nodes["a"], host="ssh://root@hv1")}
    spec = replace(spec, nodes=nodes, guest=replace(spec.guest, qemu=None))
    found = asyncio.run(inspect.find_qemu(spec, FakeHost("a", []), "a"))
    assert str(found) == binary  # before the host is asked for one on its PATH
    again = findings("add", "hv1", "ssh://hv1")
    assert "is on hv1" not in str(again.get("qemu")) and binary in host("list").output
    host("remove", "hv1")
    assert not inside(there, "sh", "-c", f"ls {folder}")


FILES = ("ca-cert.pem", "cert.pem", "key.pem")


def test_nothing_is_changed_by_a_dry_run_or_by_a_check(lab: Machines, config: Path) -> None:
    there = lab.machines["hv1"]
    assert "certificate" not in findings("add", "hv1", "ssh://hv1", "--dry-run")
    assert not inside(there, "sh", "-c", f"ls -d {TLS} 2>/dev/null")
    assert not list(config.iterdir())


def test_the_link_is_measured_between_both_machines(lab: Machines) -> None:
    findings("add", "hv1", "ssh://hv1", "--address", HV1)
    findings("add", "hv2", "ssh://hv2", "--address", HV2)
    link = findings("check", "hv1", "--peer", "hv2")["link"]
    assert link["severity"] == "ok"
    assert "hv2 to hv1: " in link["sentence"] and "MB/s" in link["sentence"]
    lab.cut("replication")
    cut = findings("check", "hv1", "--peer", "hv2")["link"]
    assert cut["severity"] == "error"
    assert f"hv2 does not reach {HV1} of hv1" in cut["sentence"]


def test_an_address_that_the_machine_does_not_have_is_named(lab: Machines) -> None:
    findings("add", "hv1", "ssh://hv1", "--address", "10.66.0.77")
    findings("add", "hv2", "ssh://hv2", "--address", HV2)
    link = findings("check", "hv1", "--peer", "hv2")["link"]
    assert link["sentence"] == "hv1 has no address 10.66.0.77."


def test_a_frame_that_a_switch_drops_is_found(lab: Machines) -> None:
    """hv2's device believes in frames that the link does not carry."""
    for name, address in (("hv1", HV1), ("hv2", HV2)):
        findings("add", name, f"ssh://{name}", "--address", address)
    device = inside(lab.machines["hv2"], "ip", "-br", "addr", "show", "to", HV2).split("@")[0]
    inside(lab.machines["hv2"], "ip", "link", "set", device, "mtu", "9000")
    try:
        found = findings("check", "hv1", "--peer", "hv2")
    finally:
        inside(lab.machines["hv2"], "ip", "link", "set", device, "mtu", "1500")
    assert found["mtu"]["sentence"] == "A frame of 9000 bytes from hv2 does not reach hv1."


def test_a_certificate_that_does_not_fit_is_a_finding(lab: Machines) -> None:
    findings("add", "hv1", "ssh://hv1", "--address", HV1)
    host("remove", "hv1", "--keep-files")
    assert host("add", "other", "ssh://hv1", "--dry-run").exception is None
    findings("add", "hv2", "ssh://hv2", "--address", HV2)
    wrong = inside(lab.machines["hv1"], "cat", f"{TLS}/cert.pem")
    with lab.machines["hv2"].popen(["tee", f"{TLS}/cert.pem"], stdin=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL, text=True) as tee:  # fmt: skip
        tee.communicate(wrong, timeout=60)
    found = findings("check", "hv2")["certificate"]
    assert found["severity"] == "error"
    assert found["sentence"] == "The certificate on hv2 is for hv1, not for hv2."


def test_a_machine_out_of_reach_is_one_sentence_and_nothing_is_listed(
    lab: Machines, config: Path
) -> None:
    lab.machines["witness"].crash()
    try:
        error = refusal("add", "witness", "ssh://witness", "--address", ADDRESSES["witness"])
    finally:
        lab.machines["witness"].boot()
    assert "witness" in error.message
    assert not list(config.iterdir())
    assert "No machine is called hv9 here." in refusal("check", "hv9").message
    assert "names no kind of host" in refusal("add", "hv9", "hv9").message

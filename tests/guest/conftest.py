"""What several tests with a real guest begin with."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import sshhost
from support.certificates import Authority
from support.clients import guest_spec

from coloctl import pairfile
from coloctl.lab import guest, machine_pair, qemu
from coloctl.lab.machines import Machines
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.tls import TlsSpec


@pytest.fixture
def described(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> PairSpec:
    """The lab's guest as a pair in the test's own ``lab``, with the QEMU that can do most."""
    return guest_spec(lab, guest_image, tmp_path, qemu_builds("11.1"))


@pytest.fixture
def ssh_hosts(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sshhost.SshHosts:
    """The second host of the test's ``lab`` as a machine that only ssh reaches: host-b."""
    hosts = sshhost.serve(tmp_path / "ssh", {"host-b": lab.host_b})
    for name, value in hosts.environment.items():
        monkeypatch.setenv(name, value)
    return hosts


@pytest.fixture
def ssh_spec(described: PairSpec, ssh_hosts: sshhost.SshHosts, tmp_path: Path) -> PairSpec:
    """The lab's guest with node b on that machine; it fails over and protects itself again.

    A pair on two machines is encrypted by itself: each has a certificate.
    """
    nodes = {**described.nodes, "b": replace(described.nodes["b"], host="ssh://host-b")}
    policy = replace(described.policy, auto_failover=True, auto_reprotect=True)
    ca, folders = Authority.new(), {"a": tmp_path / "here", "b": tmp_path / "host-b"}
    for node, folder in folders.items():
        ca.machine(folder, folder.name, described.nodes[node].address)
    spec = replace(described, nodes=nodes, policy=policy)
    spec = replace(spec, tls=TlsSpec(folders=folders, names={"a": "here"}))
    assert spec.encrypted()
    return spec


@pytest.fixture
def machine_spec(
    lab: Machines,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
    monkeypatch: pytest.MonkeyPatch,
) -> PairSpec:
    """The lab's guest on hv1 and hv2 of the test's own machines, all its wires encrypted."""
    monkeypatch.setenv("COLOCTL_SSH", shlex.join(lab.ssh()))
    binary = qemu_builds("11.1").binary
    file = machine_pair.write(
        tmp_path / "web.toml", name="web", lab=lab, guest=guest_image, qemu=binary, accel="tcg"
    )
    return pairfile.load(file)

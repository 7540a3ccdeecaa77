"""A host over a real ssh: what an operator can get wrong is one sentence, and a cut is mended."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshhost

from coloctl.errors import HostOutOfReach
from coloctl.host import open_host
from coloctl.host.records import Contact
from coloctl.host.remote.host import RemoteHost
from coloctl.lab import netns
from coloctl.model.launch import Launch
from coloctl.model.observation import Life

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

DEADLINE_S = 60.0
SLEEPER = ("sleep", "1000")


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"t{os.getpid()}-rem"
    with netns.exclusive():
        netns.create(name, lambda: None)
    yield name
    with netns.exclusive():
        netns.remove(name)


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder of host-b; the socket in it needs a short path."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        yield Path(folder)


@pytest.fixture
def hosts(
    namespace: str, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> sshhost.SshHosts:
    return serve(namespace, tmp_path, monkeypatch, COLOCTL_STATE_DIR=str(state))


def serve(
    namespace: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> sshhost.SshHosts:
    hosts = sshhost.serve(folder / "ssh", {"host-b": namespace}, {"host-b": environment})
    monkeypatch.setenv("COLOCTL_SSH", shlex.join(hosts.command))
    return hosts


async def refusal() -> HostOutOfReach:
    """Dial host-b, which is refused."""
    async with open_host("ssh://root@host-b") as host:
        with pytest.raises(HostOutOfReach) as caught:
            await host.ready(DEADLINE_S)
        assert host.reach.contact is Contact.NEVER
        assert host.reach.why == caught.value.message
    return caught.value


def until_empty(namespace: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while running := netns.processes(namespace):
        assert time.monotonic() < end, running
        time.sleep(0.01)


async def test_a_host_key_that_is_not_known(hosts: sshhost.SshHosts, namespace: str) -> None:
    (hosts.folder / "known_hosts").write_text("")
    error = await refusal()
    assert error.message == "The host key of host-b is not known on this machine."
    assert error.hint == "compare and accept it: `ssh -l root host-b true`"
    until_empty(namespace)


async def test_a_host_key_that_has_changed(hosts: sshhost.SshHosts, namespace: str) -> None:
    another = (hosts.folder / "authorized_keys").read_text()
    (hosts.folder / "known_hosts").write_text(f"host-b {another}")
    error = await refusal()
    assert error.message == "The host key of host-b is another one than this machine knows."
    assert error.hint and "`ssh-keygen -R host-b`" in error.hint
    until_empty(namespace)


async def test_a_key_that_is_not_accepted(hosts: sshhost.SshHosts, namespace: str) -> None:
    (hosts.folder / "authorized_keys").write_text("")
    error = await refusal()
    assert error.message == "host-b accepts none of this user's keys (publickey)."
    assert error.hint and "`ssh -l root host-b true`" in error.hint
    until_empty(namespace)


async def test_a_machine_without_python(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    serve(namespace, tmp_path, monkeypatch, PATH=str(tmp_path / "bin"))
    error = await refusal()
    assert error.message == "host-b has no Python on the PATH of its login shell."
    until_empty(namespace)


async def test_a_machine_without_room_for_the_agent(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (full := tmp_path / "full").write_text("")
    serve(
        namespace,
        tmp_path,
        monkeypatch,
        COLOCTL_CACHE_DIR=str(full),
        COLOCTL_STATE_DIR=str(full),
    )
    error = await refusal()
    assert error.message.startswith(f"host-b cannot keep the agent: {full}/agent: Not a directory;")
    assert error.hint and "COLOCTL_CACHE_DIR" in error.hint
    until_empty(namespace)


@pytest.mark.parametrize("version", ["", "0.0.7"])
async def test_a_forced_command_is_accepted_where_its_version_is_equal(
    hosts: sshhost.SshHosts, namespace: str, version: str
) -> None:
    forced = shlex.join([str(Path(sys.executable).with_name("coloctl")), "agent"])
    if version:
        forced = f"echo COLOCTL-AGENT 1 {version}; cat"
    with (hosts.folder / "host-b" / "sshd_config").open("a") as config:
        config.write(f"ForceCommand {forced}\n")
    if version:
        error = await refusal()
        assert error.message.startswith("The agent on host-b is coloctl 0.0.7 with protocol 1")
        assert error.hint and "the same version of coloctl on both machines" in error.hint
    else:
        async with open_host("ssh://root@host-b") as host:
            await host.ready(DEADLINE_S)
            assert host.machine.installed
    until_empty(namespace)


async def test_a_login_shell_of_another_kind_that_greets(
    hosts: sshhost.SshHosts, namespace: str, tmp_path: Path
) -> None:
    (shell := tmp_path / "shell").write_text('#!/bin/sh\necho "Welcome."\nexec bash "$@"\n')
    shell.chmod(0o755)
    users = hosts.folder / "host-b" / "passwd"
    lines = [
        f"{line.rpartition(':')[0]}:{shell}" if line.startswith("root:") else line
        for line in users.read_text().splitlines()
    ]
    users.write_text("\n".join(lines) + "\n")
    async with open_host("ssh://root@host-b") as host:
        await host.ready(DEADLINE_S)
    until_empty(namespace)


def ssh_processes(parent: int) -> list[int]:
    """Find the ssh clients that this process has started, by the kernel's list of its children."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"ssh_config" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


async def reached(host: RemoteHost, *wanted: Contact) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while host.reach.contact not in wanted:
            await host.reached(host.reach)


@pytest.mark.parametrize("how", ["killed", "stopped", "sshd"])
async def test_a_connection_that_is_cut_is_mended_without_a_loss(
    hosts: sshhost.SshHosts, namespace: str, tmp_path: Path, how: str
) -> None:
    """Goal: a process is held over the cut. Method: end or stop the ssh of a staying agent."""
    host = open_host("ssh://root@host-b", pair="web")
    assert isinstance(host, RemoteHost)
    async with host:
        await host.ready(DEADLINE_S)
        process = await host.launch(Launch(SLEEPER), stderr=tmp_path / "log", node="b")
        try:
            before = host.reach
            [ssh] = ssh_processes(os.getpid())
            if how == "sshd":
                for pid, name in netns.processes(namespace).items():
                    if name.startswith("sshd"):
                        os.kill(pid, signal.SIGKILL)
            else:
                os.kill(ssh, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
            await reached(host, Contact.LOST)
            assert "host-b" in host.reach.why
            if how == "stopped":
                assert host.reach.why.startswith("Nothing came from host-b for ")
            await reached(host, Contact.CONNECTED)
            assert host.reach.session == before.session
            async with asyncio.timeout(DEADLINE_S):
                while process.life() is not Life.ALIVE:  # noqa: ASYNC110 - a beat changes it
                    await asyncio.sleep(0.01)
        finally:
            await reached(host, Contact.CONNECTED)
            proof = await process.kill(DEADLINE_S)
        assert (proof.how, proof.exit_code) == ("sigkill", -signal.SIGKILL)
    until_empty(namespace)

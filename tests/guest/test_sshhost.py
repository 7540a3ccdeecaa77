"""A namespace behind a real ssh: commands run there, and a client that ends leaves nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshhost
from support.leaks import MARK

from coloctl.lab import netns

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR")
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"t{os.getpid()}-ssh"
    with netns.exclusive():
        netns.create(name, lambda: None)
    yield name
    with netns.exclusive():
        netns.remove(name)


@pytest.fixture
def hosts(namespace: str, tmp_path: Path) -> sshhost.SshHosts:
    return sshhost.serve(tmp_path / "ssh", {"host-b": namespace}, {"host-b": {"COLOCTL_X": "a b"}})


def run(hosts: sshhost.SshHosts, command: str, **options: str) -> subprocess.CompletedProcess[str]:
    words = [*hosts.command, *OPTIONS, "host-b", command]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=DEADLINE_S, **options
    )


def until_empty(namespace: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while running := netns.processes(namespace):
        assert time.monotonic() < end, running
        time.sleep(0.01)


def test_a_command_runs_in_the_namespace_with_the_runs_environment(
    hosts: sshhost.SshHosts, namespace: str
) -> None:
    done = run(
        hosts,
        f"cat; echo $COLOCTL_X; echo ${MARK}; stat -Lc %i /proc/self/ns/net; exit 7",
        input="in",
    )
    assert done.returncode == 7, done.stderr
    inode = netns.path(namespace).stat().st_ino
    assert done.stdout == f"ina b\n{os.environ[MARK]}\n{inode}\n"
    assert not done.stderr
    until_empty(namespace)


def test_a_client_that_is_killed_leaves_neither_process_nor_mount(
    hosts: sshhost.SshHosts, namespace: str
) -> None:
    def mounts() -> list[str]:
        return Path("/proc/self/mountinfo").read_text().splitlines()

    before = mounts()
    client = subprocess.Popen(
        [*hosts.command, *OPTIONS, "host-b", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with client:
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(b"here\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"here\n"  # cat wrote that, so it runs
        assert "cat" in netns.processes(namespace).values()
        client.kill()
    until_empty(namespace)
    assert mounts() == before


def test_another_host_key_or_another_users_key_is_refused(
    hosts: sshhost.SshHosts, namespace: str
) -> None:
    known = hosts.folder / "known_hosts"
    right = known.read_text()
    known.write_text("host-b " + (hosts.folder / "id_ed25519.pub").read_text())
    assert "Host key verification failed." in run(hosts, "true").stderr
    known.write_text("")
    assert "Host key verification failed." in run(hosts, "true").stderr
    known.write_text(right)
    (hosts.folder / "authorized_keys").write_text("")
    assert "Permission denied (publickey)." in run(hosts, "true").stderr
    until_empty(namespace)

"""The NBD client over TLS against a real qemu-nbd of each QEMU of the matrix.

A server that is not the right machine, or that does not take us for one, ends in a sentence; no
request is ever sent in plain where TLS was asked for.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority, files, for_qemu

from coloctl.lab import qemu
from coloctl.machine import tls
from coloctl.machine.option import json_option
from coloctl.model.tls import TlsIds, TlsWire
from coloctl.nbd.client import connect
from coloctl.nbd.digest import run
from coloctl.nbd.wire import BASE_ALLOCATION, NBDFailed

pytestmark = pytest.mark.qemu

SIZE = 4 << 20
START_DEADLINE_S = 20.0
IDS = TlsIds("0")

Server = Callable[..., contextlib.AbstractContextManager[dict[str, Any]]]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@pytest.fixture
def ca() -> Authority:
    return Authority.new()


@pytest.fixture
def server(qemu_build: qemu.Build, disk: Path, tmp_path: Path) -> Server:
    """A qemu-nbd with the files of ``machine``, in which ``allowed`` subjects may connect."""
    program = tmp_path / "qemu-nbd"
    program.write_text(qemu_build.img.read_text().replace("qemu-img", "qemu-nbd"))
    program.chmod(0o755)

    @contextlib.contextmanager
    def served(machine: Path | None, *allowed: str) -> Iterator[dict[str, Any]]:
        port = free_port()
        argv = [str(program), "-r", "-f", "raw", "-x", "d", "-b", "127.0.0.1", "-p", str(port)]
        argv += ["--persistent", str(disk)]
        if machine is not None:
            wire = TlsWire(IDS, "client", for_qemu(machine), allowed or ("CN=client",))
            credentials, _, peers = map(json_option, tls.objects(wire))
            argv += ["--object", credentials, "--tls-creds", IDS.server]
            argv += ["--object", peers, "--tls-authz", IDS.peers]
        process = subprocess.Popen(argv)
        try:
            until_it_listens(port, process)
            yield {"address": "127.0.0.1", "port": port, "export": "d"}
        finally:
            process.kill()
            process.wait()

    return served


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        assert process.poll() is None, "qemu-nbd ended; its reason is in this test's output"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < deadline, "qemu-nbd does not listen"
        time.sleep(0.02)


def over_tls(at: Mapping[str, Any], machine: Path, name: str = "server") -> dict[str, Any]:
    return {**at, "tls": files(machine, name).document()}


def refused(at: Mapping[str, Any]) -> str:
    """The sentence with which opening the export, or the first request, ends."""
    with pytest.raises(NBDFailed) as caught:
        connect(at, [BASE_ALLOCATION])
    return caught.value.message


def test_a_disk_is_read_and_hashed_over_tls(
    server: Server, ca: Authority, tmp_path: Path, disk: Path
) -> None:
    one, two = ca.machine(tmp_path / "s", "server"), ca.machine(tmp_path / "c", "client")
    with server(one) as plain:
        at = over_tls(plain, two)
        client = connect(at, [BASE_ALLOCATION])
        try:
            assert client.size == SIZE
            asked = [client.read(begin, 1 << 20) for begin in range(0, SIZE, 1 << 20)]
            assert b"".join(client.wait(request).data for request in asked) == disk.read_bytes()
        finally:
            client.close()
        # What the supervisor sends to a program is JSON, and the program reads just that.
        *_, last = run(json.loads(json.dumps({"at": at, "key": "00" * 16})))
        assert last == {"over": True}


def test_a_server_of_another_name_is_not_spoken_to(
    server: Server, ca: Authority, tmp_path: Path
) -> None:
    one, two = ca.machine(tmp_path / "s", "other"), ca.machine(tmp_path / "c", "client")
    with server(one) as at:
        assert "not valid for 'server'" in refused(over_tls(at, two))


def test_a_server_of_another_authority_is_not_spoken_to(
    server: Server, ca: Authority, tmp_path: Path
) -> None:
    one = Authority.new().machine(tmp_path / "s", "server")
    with server(one) as at:
        assert "certificate" in refused(over_tls(at, ca.machine(tmp_path / "c", "client")))


def test_a_certificate_that_has_ended_is_refused(
    server: Server, ca: Authority, tmp_path: Path
) -> None:
    two = ca.machine(tmp_path / "c", "client")
    old = ca.machine(tmp_path / "old", "client", age_days=400)
    with server(ca.machine(tmp_path / "s", "server")) as at:
        refused(over_tls(at, old))
        connect(over_tls(at, two)).close()


def test_a_client_of_another_authority_is_refused(
    server: Server, ca: Authority, tmp_path: Path
) -> None:
    stranger = Authority.new().machine(tmp_path / "c", "client")
    (stranger / "ca-cert.pem").write_bytes(ca.credentials.cert)
    with server(ca.machine(tmp_path / "s", "server")) as at:
        refused(over_tls(at, stranger))


def test_a_machine_of_the_same_authority_that_is_no_peer_is_refused(
    server: Server, ca: Authority, tmp_path: Path
) -> None:
    third, two = ca.machine(tmp_path / "t", "third"), ca.machine(tmp_path / "c", "client")
    with server(ca.machine(tmp_path / "s", "server"), "CN=client", "CN=server") as at:
        refused(over_tls(at, third))
        connect(over_tls(at, two)).close()


def test_a_plain_client_is_refused_and_a_plain_server_as_well(
    server: Server, ca: Authority, tmp_path: Path
) -> None:
    with server(ca.machine(tmp_path / "s", "server")) as at:
        assert "TLS" in refused(at)
    with server(None) as at:
        assert "starttls was refused" in refused(over_tls(at, ca.machine(tmp_path / "c", "client")))


def test_files_that_cannot_be_used_are_named(server: Server, ca: Authority, tmp_path: Path) -> None:
    one, two = ca.machine(tmp_path / "s", "server"), ca.machine(tmp_path / "c", "client")
    with server(one) as at:
        (two / "key.pem").write_bytes((one / "key.pem").read_bytes())
        assert f"{two / 'cert.pem'} cannot be used: key values mismatch" in refused(
            over_tls(at, two)
        )
        (two / "key.pem").unlink()
        assert f"{two / 'key.pem'} cannot be used: No such file" in refused(over_tls(at, two))

"""Who is connected to another process, and how that is ended from outside it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from coloctl.host import peers
from coloctl.host.records import Friends
from coloctl.model.wires import Address, Endpoint, SocketFile

#: CpuSampling into another process takes the right to trace it.
pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.geteuid() != 0, reason="other processes' sockets are root's to look at"),
]

#: Accepts so many clients and says of each how it ended; its own address first.
SERVER = """
import select, socket, sys
where, count = sys.argv[1], int(sys.argv[2])
server = socket.socket(socket.AF_UNIX if "/" in where else socket.AF_INET)
server.bind(where if "/" in where else ("127.0.0.1", 0))
server.listen(8)
print(server.getsockname()[1] if "/" not in where else 0, flush=True)
clients = [server.accept()[0] for _ in range(count)]
print("accepted", flush=True)
while clients:
    for one in select.select(clients, [], [])[0]:
        print("ended" if not one.recv(1) else "said", flush=True)
        clients.remove(one)
sys.stdin.read()
"""


@contextmanager
def serving(where: str, clients: int) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-S", "-c", SERVER, where, str(clients)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def heard(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


#: Connects and holds that until its stdin ends.
CLIENT = """
import socket, sys
family, *where = sys.argv[1:]
sock = socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET)
sock.connect(where[0] if family == "unix" else (where[0], int(where[1])))
print("connected", flush=True)
sys.stdin.read()
"""


@contextmanager
def connected(at: Address) -> Iterator[int]:
    """The pid of a process that is connected there."""
    where = ["unix", str(at)] if isinstance(at, SocketFile) else ["inet", at.address, str(at.port)]
    argv = [sys.executable, "-S", "-c", CLIENT, *where]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert heard(child) == "connected"
            yield child.pid
        finally:
            child.kill()


@pytest.fixture(params=["tcp", "unix"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "s.sock") if request.param == "unix" else "tcp"


def test_the_friend_is_told_from_the_stranger_and_only_the_stranger_is_cut_off(where: str) -> None:
    with serving(where, 2) as server, ExitStack() as held:
        port = int(heard(server))
        at: Address = SocketFile(Path(where)) if "/" in where else Endpoint("127.0.0.1", port)
        assert peers.callers(server.pid, at, Friends(None)) == ()
        friend = peers.calls(held.enter_context(connected(at)), at)
        assert friend is not None
        stranger = held.enter_context(connected(at))
        assert heard(server) == "accepted"
        found = peers.callers(server.pid, at, friend)
        assert found is not None
        assert sorted(one.friend for one in found) == [False, True]
        (other,) = (one.peer for one in found if not one.friend)
        if isinstance(at, SocketFile):
            assert other == f"process {stranger} of user id 0"
        assert peers.hang_up(server.pid, at, [other]) == 1
        assert heard(server) == "ended"
        assert [one.friend for one in peers.callers(server.pid, at, friend) or ()] == [True]
        assert peers.hang_up(server.pid, at) == 1
        assert heard(server) == "ended"


def test_only_a_connection_that_its_client_left_is_cut_without_a_name(where: str) -> None:
    """The others are those of clients that connected after the callers were listed."""
    with serving(where, 2) as server, ExitStack() as held:
        port = int(heard(server))
        at: Address = SocketFile(Path(where)) if "/" in where else Endpoint("127.0.0.1", port)
        held.enter_context(connected(at))
        with connected(at):
            assert heard(server) == "accepted"
            assert peers.hang_up(server.pid, at, ()) == 0
        assert heard(server) == "ended"
        assert peers.hang_up(server.pid, at, ()) == 0
        assert len(peers.callers(server.pid, at, Friends(None)) or ()) == 1


def test_what_a_stream_may_hold_can_be_widened_from_outside(tmp_path: Path) -> None:
    at = SocketFile(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(at))
        server.listen()
        client.connect(str(at))
        accepted, _ = server.accept()
        with accepted:
            before = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            peers.widen(os.getpid(), at, 4 << 20)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 4 * before


def test_a_process_that_is_gone_has_no_callers() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
        assert peers.callers(child.pid, Endpoint("127.0.0.1", 1), Friends(None)) == ()
        assert peers.calls(child.pid, Endpoint("127.0.0.1", 1)) == Friends(None)
        assert peers.hang_up(child.pid, Endpoint("127.0.0.1", 1)) == 0

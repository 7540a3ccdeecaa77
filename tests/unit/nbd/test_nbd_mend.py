"""What the programs beside two disks say and send; the histories of tests/unit/colo play them."""

from __future__ import annotations

import io
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.nbd_server import Connection, Export, whole

from coloctl.nbd import digest, mend
from coloctl.nbd.client import NbdClient, connect
from coloctl.nbd.mend import Mender, Outbox, SendLimit
from coloctl.nbd.scan import Grain
from coloctl.nbd.wire import NBDFailed

pytestmark = pytest.mark.unit

GRAIN = Grain(chunk=16, piece=64, ahead=2)
KEY = bytes(16)


class Node:
    """A disk that is served, and every write that came to it."""

    def __init__(self, content: bytes, *, can_zero: bool = True) -> None:
        self.disk = bytearray(content)
        self.writes: list[tuple[int, int]] = []
        holes = {
            "base:allocation": lambda: whole(
                len(self.disk), 16, lambda at: 0 if any(self.disk[at:][:16]) else 2
            )
        }
        self.export = Export(
            len(content),
            lambda at, n: bytes(self.disk[at : at + n]),
            self._write,
            holes,
            can_zero=can_zero,
        )

    def _write(self, at: int, data: bytes) -> None:
        self.writes.append((at, len(data)))
        self.disk[at : at + len(data)] = data

    def client(self, contexts: Iterable[str] = ()) -> NbdClient:
        return NbdClient(Connection({"d": self.export}, random.Random(1)), "d", contexts)


def compared(mine: Node, theirs: Node, **task: Any) -> list[dict[str, Any]]:
    """What the survivor's program says of two disks."""
    said: list[Any] = []
    nodes = {"mine": mine, "theirs": theirs}

    def open_(at: Any, contexts: Iterable[str]) -> NbdClient:
        return nodes[at["export"]].client(contexts)

    mender = Mender(said.append, open_, GRAIN)
    begin = {"compare": {"export": "mine"}, "target": {"export": "theirs"}}
    going = mender.hear({**begin, "key": KEY.hex(), "rate": 0, **task})
    for line in digest.lines(theirs.client(["base:allocation"]), KEY, GRAIN):
        going = going and mender.hear(line)
    assert going is ("done" in said[-1])
    mender.close()
    return said


def test_neighbours_travel_together_and_zeros_as_a_word() -> None:
    mine = Node(b"\1" * 160 + bytes(160) + b"\2" * 20)
    theirs = Node(b"\1" * 16 + b"\3" * 304 + b"\2" * 20)
    said = compared(mine, theirs)
    assert theirs.disk == mine.disk
    assert said[0] == {"writing": True}
    assert said[-1] == {"done": True, "at": 340, "read": 180, "sent": 144}
    data = [(16, 64), (80, 64), (144, 16)]
    assert sorted(theirs.writes) == [*data, (160, 160)]


def test_equal_disks_are_not_written_to() -> None:
    content = b"\1" * 100 + bytes(100)
    theirs = Node(content)
    said = compared(Node(content), theirs)
    assert not theirs.writes
    assert said == [{"done": True, "at": 200, "read": 112, "sent": 0}]


def test_a_replica_that_cannot_zero_gets_zeros() -> None:
    theirs = Node(b"\3" * 64, can_zero=False)
    assert compared(Node(bytes(64)), theirs)[-1]["sent"] == 64
    assert theirs.disk == bytes(64)


def test_disks_of_different_size_are_not_compared() -> None:
    (said,) = compared(Node(bytes(64)), Node(bytes(80)))
    assert said["settled"] and "64 and 80 bytes" in said["failed"]


@pytest.mark.parametrize(
    "line",
    [
        {"failed": "the disk is broken"},
        {"begin": 64, "end": 80, "zeros": True},
        {"begin": 0, "end": 800, "zeros": True},
        {"over": True},
    ],
)
def test_digests_that_are_not_whole_end_it(line: dict[str, Any]) -> None:
    said: list[Any] = []
    mine, theirs = Node(b"\1" * 64), Node(b"\2" * 64)
    mender = Mender(said.append, lambda at, c: (mine if at["export"] else theirs).client(c), GRAIN)
    task = {"compare": {"export": "d"}, "target": {"export": ""}, "key": KEY.hex(), "rate": 0}
    assert mender.hear(task)
    assert not mender.hear(line)
    assert said[-1]["settled"] and said[-1]["failed"]


def test_digests_of_nothing_are_refused() -> None:
    said: list[Any] = []
    assert not Mender(said.append).hear({"begin": 0, "end": 16, "zeros": True})
    assert "nothing to compare" in said[0]["failed"]


def test_no_more_is_sent_than_the_rate_allows_and_idle_time_is_not_saved() -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = SendLimit(1000, lambda: now[0], sleep)
    for _ in range(5):
        pace.sent(500)
    assert now[0] == pytest.approx(102.5)
    now[0] += 60
    pace.sent(500)
    assert now[0] == pytest.approx(163.0)


def test_a_bounded_number_of_writes_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mend, "WINDOW", 3 * GRAIN.piece)
    theirs = Node(bytes(4096))
    outbox = Outbox(theirs.client(), GRAIN, lambda: None)
    most = 0
    for at in range(0, 4096, 128):
        outbox.put(at, at + 16, memoryview(b"\1" * 16))
        most = max(most, outbox.client.unanswered)
    assert most == 3
    outbox.settle(flush=True)
    assert len(theirs.writes) == 32 and not outbox.client.unanswered


# -- as programs, over real sockets


def serve(path: Path, node: Node) -> threading.Thread:
    """The node's disk over a unix socket, for one client."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def carry() -> None:
        sock, _ = listener.accept()
        with sock, listener:
            server = Connection({"d": node.export}, random.Random(2))
            buffer = memoryview(bytearray(1 << 16))
            while not server.closed:
                while count := server.recv_into(buffer):
                    sock.sendall(buffer[:count])
                if not (data := sock.recv(1 << 16)):
                    break
                server.sendall(data)

    thread = threading.Thread(target=carry)
    thread.start()
    return thread


def program(module: str, *told: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", module],
        input="".join(json.dumps(line) + "\n" for line in told),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_programs_make_a_replica_equal(tmp_path: Path) -> None:
    mine = Node(bytes(range(256)) * 1000)
    theirs = Node(bytes(range(256)) * 400 + bytes(600 * 256))
    threads = [serve(tmp_path / "t0", theirs)]
    at = {"unix": str(tmp_path / "t0"), "export": "d"}
    code, digests = program("coloctl.nbd.digest", {"at": at, "key": KEY.hex()})
    assert code == 0 and digests[-1] == digest.OVER
    threads += [serve(tmp_path / "s", mine), serve(tmp_path / "t1", theirs)]
    task = {
        "compare": {"unix": str(tmp_path / "s"), "export": "d"},
        "target": {"unix": str(tmp_path / "t1"), "export": "d"},
        "key": KEY.hex(),
        "rate": 0,
    }
    code, said = program("coloctl.nbd.mend", task, *digests)
    assert code == 0 and said[-1]["done"]
    for thread in threads:
        thread.join(60)
    assert theirs.disk == mine.disk
    assert said[-1]["sent"] == len(mine.disk) - 65536  # the first chunk was equal


def test_a_program_that_reaches_nobody_says_so(tmp_path: Path) -> None:
    at = {"unix": str(tmp_path / "nobody"), "export": "d"}
    code, said = program("coloctl.nbd.digest", {"at": at, "key": KEY.hex()})
    assert code == 1 and "no connection" in said[0]["failed"]
    task = {"compare": at, "target": at, "key": KEY.hex(), "rate": 0}
    code, said = program("coloctl.nbd.mend", task)
    assert code == 1 and said[0]["settled"]


def test_a_program_whose_supervisor_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert mend.main() == 0


def test_connecting_over_tcp_refused_is_a_sentence() -> None:
    with pytest.raises(NBDFailed, match="no connection: Connection refused"):
        connect({"address": "127.0.0.1", "port": 1, "export": "d"})

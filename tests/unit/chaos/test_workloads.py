"""Clients note what happened to them, and nothing else: each is shown a server that misbehaves."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import (
    WORKLOADS,
    AppendsParams,
    BlocksParams,
    PacedParams,
    Params,
    StreamParams,
    TransfersParams,
    disk_writer,
    http,
    redis_appends,
    redis_transfers,
    start_workload,
    tcp_stream,
    udp_sequence,
)
from coloctl.chaos.workloads import blocks as blocks_of
from coloctl.chaos.workloads.client import Client, ConnectionLost, work_to_end
from coloctl.chaos.workloads.history import Op, OpStatus, operations
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.errors import LabError
from coloctl.lab.network import Lab

pytestmark = pytest.mark.unit

Server = Callable[[socket.socket], None]


@contextmanager
def serving(server: Server) -> Iterator[int]:
    """The port of a server that deals with one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(ConnectionResetError):  # a client may go at any time
                server(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(5)


def lives(
    work: Callable[[Client[Any]], None],
    params: Params,
    enough: Callable[[list[Op]], bool],
    port: int | None = None,
) -> list[Op]:
    """The history of one client that is told to end when it has done enough."""
    notes: list[Op] = []
    ending = threading.Event()
    host = "127.0.0.1" if port is None else f"127.0.0.1:{port}"
    client = Client(3, 3, host, cast(Any, params), ending, notes.append)
    thread = threading.Thread(target=work_to_end, args=(work, client), daemon=True)
    thread.start()
    give_up = time.monotonic() + 10
    while thread.is_alive() and not enough(notes) and time.monotonic() < give_up:
        time.sleep(0.002)
    ending.set()
    thread.join(10)
    assert not thread.is_alive()
    return notes


def acknowledged(ops: list[Op]) -> list[int]:
    return [op.n for op in ops if op.outcome is OpStatus.OK]


def three(ops: list[Op]) -> bool:
    return len(acknowledged(ops)) >= 3


def connection_notes(ops: list[Op]) -> list[tuple[OpStatus, str]]:
    return [(op.outcome, op.note) for op in ops if op.n < 0]


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


# -- a stream both ways

STREAM = StreamParams(pause_ms=1, chunk_bytes=100, window=2)


def test_a_stream_that_is_echoed_is_acknowledged_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(echo) as port:
        monkeypatch.setattr(tcp_stream, "ECHO_PORT", port)
        ops = lives(tcp_stream.work, STREAM, three)
    sent = [op.n for op in ops if op.outcome is OpStatus.INVOKE]
    assert acknowledged(ops) == sent == list(range(len(sent)))
    (_, opened), (_, closed) = connection_notes(ops)
    assert opened.removeprefix("opened ") == closed.removeprefix("closed ")


def test_one_wrong_byte_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def forge(connection: socket.socket) -> None:
        came = 0
        while data := bytearray(connection.recv(65536)):
            if came <= 234 < came + len(data):
                data[234 - came] ^= 1
            came += len(data)
            connection.sendall(data)

    with serving(forge) as port:
        monkeypatch.setattr(tcp_stream, "ECHO_PORT", port)
        ops = lives(tcp_stream.work, STREAM, lambda ops: len(ops) > 1000)
    assert acknowledged(ops) == [0, 1]
    assert (OpStatus.FAIL, "wrong byte at 234") in connection_notes(ops)
    assert [op.n for op in ops if op.outcome is OpStatus.INFO and op.n >= 0] == [2, 3]


def test_a_connection_that_ends_leaves_what_was_under_way_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang_up(connection: socket.socket) -> None:
        connection.recv(1)

    with serving(hang_up) as port:
        monkeypatch.setattr(tcp_stream, "ECHO_PORT", port)
        ops = lives(tcp_stream.work, STREAM, lambda ops: len(ops) > 1000)
    assert acknowledged(ops) == []
    assert {op.n for op in ops if op.outcome is OpStatus.INFO and op.n >= 0} <= {0, 1}
    assert connection_notes(ops)[-1][0] is OpStatus.FAIL
    assert not any(op.note.startswith("closed") for op in ops)


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    monkeypatch.setattr(tcp_stream, "ECHO_PORT", port)
    (op,) = lives(tcp_stream.work, STREAM, lambda ops: len(ops) > 1000)
    assert (op.outcome, op.n) == (OpStatus.FAIL, -1)
    assert op.note.startswith("never connected: ")


@given(st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 300), st.data())
def test_any_changed_byte_of_a_chunk_shows(
    client: int, n: int, size: int, data: st.DataObject
) -> None:
    sent = tcp_stream.chunk(client, n, size)
    assert len(sent) == size
    assert tcp_stream.wrong_byte(sent, sent) is None
    at = data.draw(st.integers(0, size - 1))
    came = bytearray(sent)
    came[at] ^= data.draw(st.integers(1, 255))
    assert tcp_stream.wrong_byte(sent, bytes(came)) == at


# -- a web server


def answering(head: bytes, body: bytes) -> Server:
    def serve(connection: socket.socket) -> None:
        while connection.recv(4096):
            connection.sendall(head + body)

    return serve


def test_answers_are_kept_with_status_and_body(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    with serving(answering(head, b"uid\n")) as port:
        monkeypatch.setattr(http, "WEB_PORT", port)
        ops = lives(http.work, PacedParams(pause_ms=1), three)
    assert {json.dumps(op.value) for op in ops if op.outcome is OpStatus.OK} == {'[200, "uid"]'}
    assert connection_notes(ops)[-1][1].startswith("closed ")


@pytest.mark.parametrize(
    "head",
    [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_no_answer_over_a_kept_connection_breaks_it(head: str) -> None:
    with pytest.raises(ConnectionLost):
        http.answered(head)


# -- datagrams


def test_datagrams_are_noted_as_echoed_doubled_or_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_sequence, "STRAGGLERS_S", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        monkeypatch.setattr(udp_sequence, "ECHO_PORT", server.getsockname()[1])

        def serve() -> None:
            for n in range(4):
                data, whom = server.recvfrom(2048)
                for _ in range((1, 0, 2, 1)[n]):
                    server.sendto(data, whom)

        thread = threading.Thread(target=serve)
        thread.start()
        ops = lives(
            udp_sequence.work, PacedParams(pause_ms=20), lambda ops: len(acknowledged(ops)) >= 4
        )
        thread.join(5)
    assert [op.n for op in ops if op.f == "duplicate"] == [2]
    assert [op.n for op in ops if op.outcome is OpStatus.OK and not op.f][:2] == [0, 2]
    assert 1 in [op.n for op in ops if op.outcome is OpStatus.INFO]
    assert not connection_notes(ops)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=70))
def test_only_ones_own_datagrams_have_a_number(client: int, n: int, noise: bytes) -> None:
    assert udp_sequence.numbered(client, udp_sequence.datagram(client, n)) == n
    assert udp_sequence.numbered(client ^ 1, udp_sequence.datagram(client, n)) is None
    assert udp_sequence.numbered(client, noise) is None or len(noise) == 64


# -- blocks on the disk


def test_a_block_that_the_disk_refused_is_unknown_and_the_client_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def serve(connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        for n, line in enumerate(stream):
            stream.read(int(line.split()[3]))
            stream.write(b"error no space\n" if n == 1 else b"ok\n")
            stream.flush()

    with serving(serve) as port:
        monkeypatch.setattr(blocks_of, "BLOCKS_PORT", port)
        ops = lives(disk_writer.work, BlocksParams(pause_ms=1, block_bytes=64), three)
    assert acknowledged(ops)[:3] == [0, 2, 3]
    assert [(op.n, op.note) for op in ops if op.outcome is OpStatus.INFO and op.n >= 0] == [
        (1, "no space")
    ]
    assert ops[2].value == zlib.crc32(disk_writer.block(3, 0, 64))


@given(st.sets(st.integers(0, 9)), st.integers(16, 64))
def test_blocks_are_told_from_holes(present: set[int], size: int) -> None:
    held = bytearray(size * (max(present, default=-1) + 1))
    for n in present:
        held[n * size : (n + 1) * size] = disk_writer.block(1, n, size)
    wanted = {n: zlib.crc32(disk_writer.block(1, n, size)) for n in present}
    assert disk_writer.checksums(bytes(held), size) == wanted


def test_half_a_block_has_another_checksum() -> None:
    half = disk_writer.block(1, 0, 64)[:32]
    assert disk_writer.checksums(half, 64)[0] != zlib.crc32(disk_writer.block(1, 0, 64))


# -- records


class Redis:
    """A server that knows the two commands of a client of records, and breaks at one of them."""

    def __init__(self, breaks_at: int) -> None:
        self.records: list[bytes] = []
        self._breaks_at = breaks_at

    def __call__(self, connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        for line in stream:
            words = [stream.read(int(stream.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:]))]
            if words[0] == b"RPUSH":
                if len(self.records) == self._breaks_at:
                    return
                self.records.append(words[2])
            stream.write(b":%d\r\n" % (7 if words[0] == b"CLIENT" else len(self.records)))
            stream.flush()


def test_records_are_numbered_and_the_one_that_breaks_the_connection_is_unknown() -> None:
    server = Redis(breaks_at=2)
    with serving(server) as port:
        ops = lives(redis_appends.work, AppendsParams(pause_ms=0), lambda ops: False, port)
    assert server.records == [b"0", b"1"]
    assert acknowledged(ops) == [0, 1]
    assert [op.n for op in ops if op.outcome is OpStatus.INVOKE] == [0, 1, 2]
    assert [op.n for op in ops if op.outcome is OpStatus.INFO and op.n >= 0] == [2]
    (_, opened), (status, broke) = connection_notes(ops)
    assert opened == "opened 7"
    assert status is OpStatus.FAIL
    assert broke.startswith("broke at record 2: ")


def test_a_load_that_ends_closes_its_connection_after_a_whole_record() -> None:
    server = Redis(breaks_at=-1)
    with serving(server) as port:
        ops = lives(redis_appends.work, AppendsParams(pause_ms=1), three, port)
    assert acknowledged(ops) == list(range(len(server.records)))
    assert [note for _, note in connection_notes(ops)] == ["opened 7", "closed 7"]


def test_clients_of_one_clock_burst_together() -> None:
    params = AppendsParams(pause_ms=2, burst_s=3.0, idle_s=7.0)
    assert redis_appends.wait_ms(params, 1002.9) == 2
    assert redis_appends.wait_ms(params, 1003.5) == pytest.approx(6500)
    assert redis_appends.wait_ms(AppendsParams(pause_ms=2), 1003.5) == 2


# -- transfers


@given(st.integers(2, 9), st.data())
def test_a_transfer_keeps_the_sum(accounts: int, data: st.DataObject) -> None:
    names = redis_transfers.accounts(TransfersParams(accounts=accounts))
    source, target = data.draw(st.permutations(names))[:2]
    move = {"from": source, "to": target, "amount": data.draw(st.integers(1, 20))}
    down, up, done = redis_transfers.transfer(5, 6, 7, move)
    assert (down[0], up[0], down[2]) == ("DECRBY", "INCRBY", up[2])
    assert down[1] != up[1]
    assert done == ("SET", "bank:5:done:6", 7)


# -- operations of a history


@given(
    st.lists(st.sampled_from([None, OpStatus.OK, OpStatus.FAIL, OpStatus.INFO]), max_size=8),
    st.randoms(use_true_random=False),
)
def test_each_answer_belongs_to_the_invocation_of_its_client_and_number(
    answers: list[OpStatus | None], chance: random.Random
) -> None:
    """Two clients with the same numbers; lines of connections and second answers are none."""
    history = [Op(0.0, 0, OpStatus.INFO, -1, "opened 1"), Op(99.0, 0, OpStatus.OK, 0)]
    for client in (0, 1):
        for n, answer in enumerate(answers):
            history.append(Op(n + client / 2, client, OpStatus.INVOKE, n))
            if answer is not None:
                history.append(Op(n + 10 + client / 2, client, answer, n))
    chance.shuffle(history)
    found = operations(history)
    assert sorted((one.begun.client, one.begun.n) for one in found) == [
        (client, n) for client in (0, 1) for n in range(len(answers))
    ]
    for one in found:
        if one.ended is not None:
            assert (one.ended.client, one.ended.n) == (one.begun.client, one.begun.n)
            assert one.status is one.ended.outcome
    ended = [one.ended.at_s for one in found if one.ended is not None]
    assert ended == sorted(ended)
    assert all(one.status is OpStatus.INFO for one in found[len(ended) :])


# -- the table


def test_every_kind_has_a_program_and_defaults() -> None:
    for name, kind in WORKLOADS.items():
        assert kind.doc
        assert kind.params()
        assert kind.checks
        with pytest.raises(ValidationError):
            kind.params(**{f"no_key_of_{name}": 1})


def test_parameters_are_whole_numbers_where_they_count() -> None:
    assert AppendsParams(**cast(Any, {"pause_ms": 5})).pause_ms == 5
    with pytest.raises(ValidationError):
        StreamParams(**cast(Any, {"window": 1.5}))
    with pytest.raises(ValidationError):
        StreamParams(chunk_bytes=1 << 20)


class Bench:
    """Stands in for a lab: programs are started right here."""

    def __init__(self) -> None:
        self.argv: list[str] = []

    def popen(self, argv: list[str], where: str, **options: Any) -> Any:
        self.argv = list(argv)
        return subprocess.Popen(argv, **options)

    def run(self, argv: list[str], where: str) -> Any:
        return subprocess.run(argv, capture_output=True, text=True, check=True)


PROGRAM = """
import sys
if "--read-back" in sys.argv:
    print(sys.argv[1])
    sys.exit()
print('{"at_s":1,"client":0,"outcome":"invoke","n":0}')
print('{"at_s":2,"client":0,"outcome":"ok","n":0}', flush=True)
sys.stdin.read()
print('{"at_s":3,"client":0,"outcome":"info","n":-1,"note":"closed 1"}')
sys.stdout.write('{"at_s":4,"cl')
"""


def program(says: str) -> ClientProgram:
    return ClientProgram(cast(Lab, Bench()), [sys.executable, "-S", "-c", PROGRAM, says])


def test_a_history_is_read_as_it_comes_and_a_piece_of_a_line_is_none() -> None:
    running = program('{"a": 1}')
    try:
        give_up = time.monotonic() + 10
        while not running.acknowledged() and time.monotonic() < give_up:
            time.sleep(0.01)
        assert running.acknowledged() == 1
        assert [op.at_s for op in running.finish()] == [1, 2, 3]
        assert running.read_back() == {"a": 1}
    finally:
        running.kill()


def test_an_answer_that_is_none_is_refused_and_a_kill_is_final() -> None:
    running = program("nothing")
    running.kill()
    running.kill()
    with pytest.raises(LabError, match="nothing"):
        running.read_back()


def test_a_kind_starts_its_program_with_its_clients_and_parameters() -> None:
    bench = Bench()
    spec = Workload(kind="tcp-stream", clients=2, params=StreamParams(window=1), numbered_from=4)
    running = start_workload(cast(Lab, bench), spec)
    running.kill()
    assert bench.argv[2:4] == ["coloctl.chaos.workloads.tcp_stream", "--host"]
    *words, params = bench.argv[5:]
    assert words == ["--clients", "2", "--first", "4", "--params"]
    assert StreamParams.model_validate_json(params) == StreamParams(window=1)

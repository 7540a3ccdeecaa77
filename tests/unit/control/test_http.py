"""Metrics and health over a real socket: what is answered, to whom, and who never waits."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from support.fakeclock import FakeClock
from support.views import LOST, PROTECTED

from coloctl.control.daemon import export
from coloctl.control.daemon import http as metrics_http
from coloctl.control.daemon.export import exporting
from coloctl.control.daemon.http import (
    LATE_S,
    Address,
    MetricsServer,
    check_free,
    parse_address,
)
from coloctl.errors import PreconditionFailed, UsageError
from coloctl.metrics import SUSPECTS, Metrics
from coloctl.model.observation import Life, Limits, NodeSeen, Observation
from coloctl.model.pair import Role
from coloctl.model.pairevent import FailedOver, StateChanged
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import Timeline
from coloctl.model.view import PairView

pytestmark = pytest.mark.unit

#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 20.0
ANYWHERE = Address("127.0.0.1", 0)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(50.0)


@pytest.fixture
def metrics(clock: FakeClock) -> Metrics:
    made = Metrics("web", clock)
    made.view(PROTECTED)
    return made


@pytest.fixture
def server(metrics: Metrics) -> Iterator[MetricsServer]:
    with contextlib.closing(MetricsServer(metrics, ANYWHERE)) as serving:
        yield serving


def ask(
    server: MetricsServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read().decode()


def ended(client: socket.socket) -> bool:
    """The server closes the connection without an answer, now or soon."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_scraper_gets_the_format_that_it_asks_for(server: MetricsServer) -> None:
    answer, text = ask(server, "/metrics", Accept=OPENMETRICS)
    assert answer.status == 200
    assert str(answer.getheader("Content-Type")).startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    names = {family.name for family in openmetrics_parser.text_string_to_metric_families(text)}
    assert "coloctl_protection" in names
    answer, text = ask(server, "/metrics")
    assert str(answer.getheader("Content-Type")).startswith("text/plain")
    assert "coloctl_protection" in {f.name for f in parser.text_string_to_metric_families(text)}


def test_a_version_that_is_none_gets_the_oldest_format(server: MetricsServer) -> None:
    for version in ("1.0.x", "x.y", ""):
        accept = f"application/openmetrics-text; version={version}"
        answer, _ = ask(server, "/metrics", Accept=accept)
        assert answer.status == 200


def test_protected_is_for_load_balancers(server: MetricsServer, metrics: Metrics) -> None:
    answer, said = ask(server, "/protected")
    assert (answer.status, said) == (200, "web is protected.\n")
    metrics.view(replace(PROTECTED, paused=True))
    answer, said = ask(server, "/protected")
    assert (answer.status, said) == (200, "web is protected. Automatic failover is paused.\n")
    metrics.view(replace(LOST, reason="Node a\nwas lost."))
    answer, said = ask(server, "/protected")
    assert answer.status == 503
    assert said == "web is not protected (unprotected): Node a was lost.\n"
    assert ask(server, "/healthz")[0].status == 200


def test_a_supervisor_that_stopped_looking_is_neither_healthy_nor_sure(
    server: MetricsServer, metrics: Metrics, clock: FakeClock
) -> None:
    assert ask(server, "/healthz")[0].status == 200
    clock.advance(LATE_S + 1)
    for path in ("/healthz", "/protected"):
        answer, said = ask(server, path)
        assert answer.status == 503
        assert said == "The supervisor of web has not looked at the pair for 6 s.\n"
    assert ask(server, "/metrics")[0].status == 200
    metrics.view(PROTECTED)
    assert ask(server, "/protected")[0].status == 200


def test_before_the_first_look_nothing_is_promised() -> None:
    with contextlib.closing(MetricsServer(Metrics("web"), ANYWHERE)) as server:
        for path in ("/healthz", "/protected"):
            assert ask(server, path)[0].status == 503
        assert ask(server, "/metrics")[0].status == 200


def test_other_paths_and_other_methods_are_told_what_there_is(server: MetricsServer) -> None:
    answer, said = ask(server, "/metric")
    assert answer.status == 404
    assert all(path in said for path in ("/metrics", "/healthz", "/protected"))
    answer, _ = ask(server, "/metrics", "POST")
    assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")
    assert ask(server, "/healthz?verbose=1")[0].status == 200


def test_head_is_get_without_the_body(server: MetricsServer) -> None:
    for path in ("/healthz", "/protected", "/nowhere"):
        got, body = ask(server, path)
        head, nothing = ask(server, path, "HEAD")
        assert (head.status, head.getheader("Content-Length")) == (got.status, str(len(body)))
        assert nothing == ""


def test_nonsense_is_refused_and_harms_nobody(
    server: MetricsServer, caplog: pytest.LogCaptureFixture
) -> None:
    for words in (b"\0\1\2\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b""):
        with socket.create_connection(server.address, PATIENCE_S) as client:
            client.sendall(words)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                continue
    assert ask(server, "/healthz")[0].status == 200
    assert not caplog.records


def test_slow_clients_make_nobody_wait_and_are_cut_off(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(server.address, PATIENCE_S))
            for _ in range(metrics_http.MOST_REQUESTS)
        ]
        for client in slow:
            client.sendall(b"GET /metrics HTTP/1.0\r\n")
        assert ask(server, "/healthz")[0].status == 200
        monkeypatch.setattr(metrics_http, "REQUEST_DEADLINE_S", 0.0)
        for client in slow:
            assert ended(client)


def test_one_request_too_many_ends_the_oldest(server: MetricsServer) -> None:
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(server.address, PATIENCE_S))
            for _ in range(metrics_http.MOST_REQUESTS + 1)
        ]
        assert ended(slow[0])
        slow[-1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert slow[-1].recv(1024).startswith(b"HTTP/1.0 200 OK\r\n")


def test_a_flood_of_clients_is_taken_no_faster_than_is_allowed(server: MetricsServer) -> None:
    """Whatever comes more waits in the kernel, and takes no turn of the supervisor's."""
    answered, end = 0, threading.Event()

    def flood() -> None:
        nonlocal answered
        while not end.is_set():
            with contextlib.suppress(OSError):
                ask(server, "/metrics")
                answered += 1

    began_s = time.monotonic()
    floods = [threading.Thread(target=flood) for _ in range(8)]
    for one in floods:
        one.start()
    time.sleep(1.0)
    end.set()
    for one in floods:
        one.join(PATIENCE_S)
    most = metrics_http.BURST + metrics_http.PER_SECOND * (time.monotonic() - began_s)
    assert 0 < answered <= most + 1
    assert ask(server, "/healthz")[0].status == 200


def test_closing_ends_everything(metrics: Metrics) -> None:
    server = MetricsServer(metrics, ANYWHERE)
    with socket.create_connection(server.address, PATIENCE_S) as client:
        server.close()
        assert ended(client)
    check_free(server.address)


# -- addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9101", "127.0.0.1", 9101),
        ("localhost:9101", "127.0.0.1", 9101),
        ("192.0.2.7:80", "192.0.2.7", 80),
        ("0.0.0.0:9101", "0.0.0.0", 9101),
        ("[::1]:9101", "::1", 9101),
        ("[::]:65535", "::", 65535),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == (host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "9101", ":", ":0", ":65536", ":999999", "::1:9101", "[::1]", "host", "a b:1", ":-1"),
        *("example.org:9101", "[127.0.0.1:9101", "127.0.0.1:http", "[]:9101", "300.0.0.1:9101"),
    ],
)
def test_what_is_no_address_is_told_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_address(text)
    assert "is not an address to listen at" in refused.value.message
    assert refused.value.hint


def test_an_address_in_use_is_told(server: MetricsServer, metrics: Metrics) -> None:
    sentence = f"Another program already listens at {server.address}"
    with pytest.raises(PreconditionFailed, match=sentence):
        check_free(server.address)
    with pytest.raises(PreconditionFailed, match=sentence):
        MetricsServer(metrics, server.address)


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(PreconditionFailed, match="is no address of this machine"):
        check_free(Address("192.0.2.7", 9101))


# -- a supervisor's export


async def fetch(address: Address, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


def free_address() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Address(*listener.getsockname())


async def until_answered(address: Address, path: str) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(ConnectionError):
                return await fetch(address, path)
            await asyncio.sleep(0.01)


async def test_a_change_of_state_shows_at_once() -> None:
    address, views = free_address(), [PROTECTED]
    async with exporting("web", str(address)) as exported:
        exported.watch(lambda: views[0])
        assert b"200 OK" in await until_answered(address, "/protected")
        views[0] = LOST
        before, after = Protection.COLO, Protection.FAILOVER
        lost = StateChanged(before=before, fact=Fact.NODE_LOST, after=after, reason="x")
        exported.event(lost)
        assert b" 503 " in await fetch(address, "/protected")
    with pytest.raises(ConnectionRefusedError):
        await fetch(address, "/protected")


async def test_an_address_that_is_taken_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "PUBLISH_S", 0.01)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = Address(*listener.getsockname())
            async with exporting("web", str(address)) as exported:
                exported.watch(lambda: PROTECTED)
                await asyncio.sleep(0.1)
                listener.close()
                assert b"200 OK" in await until_answered(address, "/healthz")

    with caplog.at_level(logging.ERROR):
        await scenario()
    assert len(caplog.records) == 1  # however often it was tried


async def test_what_goes_wrong_in_the_figures_never_reaches_the_supervisor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> PairView:
        raise ValueError("broken")

    async with exporting("web", str(free_address())) as exported:
        exported.watch(broken)
        steps: Any = {"running": "late"}  # no number
        exported.event(FailedOver(timeline=Timeline("b", "a", Role.SECONDARY, steps)))
    assert "FAILED_OVER was not counted" in caplog.messages
    assert "the pair was not published" in caplog.messages


# -- near misses

LIMITS = Limits(
    suspect_ms=100, silent_ms=400, link_ms=200, command_ms=1000, stall_ms=2000, overdue_ms=800
)
A, B = NodeSeen(Role.PRIMARY, Life.ALIVE), NodeSeen(Role.SECONDARY, Life.ALIVE)
CALM = Observation(0.0, Protection.COLO, {"a": A, "b": B}, LIMITS, link_silent_ms=0.0)


@pytest.mark.parametrize(
    ("path", "tense"),
    [
        ("rescue", replace(CALM, nodes={"a": replace(A, rescue_silent_ms=201), "b": B})),
        ("rescue", replace(CALM, nodes={"a": A, "b": replace(B, rescue_silent_ms=390)})),
        ("rescue", replace(CALM, nodes={"a": replace(A, rescue_silent_ms=60, life=Life.STOPPED)})),
        ("command", replace(CALM, nodes={"a": replace(A, command_silent_ms=501), "b": B})),
        ("link", replace(CALM, link_silent_ms=101)),
        ("data", replace(CALM, unacked_ms=201)),
        ("held", replace(CALM, held_ms=1001)),
        ("overdue", replace(CALM, overdue_ms=401)),
    ],
)
def test_half_of_a_limit_is_near(metrics: Metrics, path: str, tense: Observation) -> None:
    exported = export.Export(metrics, ANYWHERE)
    for seen in (CALM, tense, tense, CALM):
        exported.observed(seen)
    labels = {"pair": "web", "path": path}
    assert metrics.registry.get_sample_value("coloctl_near_misses_total", labels) == 1


def test_less_than_half_of_a_limit_is_not_near(metrics: Metrics) -> None:
    exported = export.Export(metrics, ANYWHERE)
    nodes = {"a": replace(A, rescue_silent_ms=60, command_silent_ms=300), "b": B}
    for seen in (replace(CALM, nodes=nodes, link_silent_ms=90, held_ms=900), CALM):
        exported.observed(seen)
    for path in SUSPECTS:
        labels = {"pair": "web", "path": path}
        assert metrics.registry.get_sample_value("coloctl_near_misses_total", labels) == 0

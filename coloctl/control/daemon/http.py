"""Serve metrics and health of one supervisor over HTTP: `/metrics`, `/healthz`, `/protected`.

Opened by `control.daemon.export`; `cli.options` checks its address before. Reads what `metrics/`
published.

Invariant: a client, however slow or however many, never makes the supervisor's loop wait: requests
are answered by threads that only read what `Metrics` published. Their number, their time and how
many begin in a second are bounded: threads of one process take turns, and a crowd of them would
take the loop's. There is neither a password nor encryption, so an address is loopback unless one is
named.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, ClassVar, NamedTuple

from prometheus_client.exposition import choose_encoder

from coloctl import __version__
from coloctl.errors import PreconditionFailed, UsageError
from coloctl.metrics import Metrics
from coloctl.model.protection import Protection
from coloctl.ratelimit import RateLimit

log = logging.getLogger(__name__)

#: The supervisor publishes every second, and one look may take 2 s (`supervisor.loop`).
LATE_S = 5.0
#: From accept to the last byte; Prometheus gives up after 10 s by default.
REQUEST_DEADLINE_S = 10.0
#: Requests under way at once. One more makes the oldest end.
MOST_REQUESTS = 16
#: So many may come at once, and so many each second for ever. A request takes some milliseconds of
#: the one turn that all threads share, a heartbeat comes every 20 ms.
BURST, PER_SECOND = 32, 32
#: How often requests that take too long are looked for, seconds.
SWEEP_S = 0.25

_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})")
_TEXT = "text/plain; charset=utf-8"


class Address(NamedTuple):
    """An address to listen at; port 0 is any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse ``HOST:PORT``, ``[::1]:PORT``, or ``:PORT`` on loopback; raises `UsageError`.

    HOST is an address or localhost: a supervisor never waits for a name server.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise UsageError(
            f"'{text}' is not an address to listen at.",
            hint="write HOST:PORT, [::1]:PORT, or :PORT for this machine alone",
        )
    host = match["v6"] or match["host"]
    if host in ("", "localhost"):
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(
            f"'{host}' is not an address to listen at; names are not looked up.",
            hint="write the address, such as 192.0.2.7:9101",
        ) from error
    return Address(host, int(match["port"]))


class MetricsServer:
    """Answers at `address` from its making to `close`."""

    def __init__(self, metrics: Metrics, wanted: Address) -> None:
        """Listen at the address; raises `PreconditionFailed` where it cannot be had."""
        self._server = _Server(metrics, _bound(wanted))
        host, port = self._server.server_address[:2]
        self.address = Address(str(host), port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(SWEEP_S,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening at the address and cut off requests under way. Takes up to SWEEP_S."""
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()
        self._thread.join()


def check_free(wanted: Address) -> None:
    """Check that the address can be had now; raises what `MetricsServer` would raise."""
    _bound(wanted).close()


def _bound(wanted: Address) -> socket.socket:
    """Open a socket that listens there."""
    flags = socket.AI_NUMERICHOST
    try:
        ((family, _, _, _, place), *_) = socket.getaddrinfo(
            wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=flags
        )
        return socket.create_server(place, family=family, backlog=MOST_REQUESTS)
    except OSError as error:
        raise PreconditionFailed(_refusal(wanted, error)) from error


def _refusal(wanted: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Another program already listens at {wanted}, so no metrics can be served there."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{wanted.host} is no address of this machine, so no metrics can be served there."
    return f"No metrics can be served at {wanted}: {error.strerror}."


class _Server(ThreadingMixIn, TCPServer):
    """A thread per request; requests that take too long, or are too many, are cut off."""

    daemon_threads = True

    def __init__(self, metrics: Metrics, listener: socket.socket) -> None:
        self.metrics = metrics
        self._lock = threading.Lock()
        self._began: dict[socket.socket, float] = {}  # in the order of their beginning
        self._allowed = RateLimit(BURST, PER_SECOND)
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_address = listener.getsockname()

    def get_request(self) -> Any:
        """Accept a client no faster than is allowed; the kernel keeps the others waiting."""
        time.sleep(self._allowed.wait_s(time.monotonic()))
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._began[request] = time.monotonic()
            crowd = list(self._began)[:-MOST_REQUESTS]
        self._cut(crowd)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off requests that take too long; runs every `SWEEP_S` and after each request."""
        late = time.monotonic() - REQUEST_DEADLINE_S
        with self._lock:
            overdue = [request for request, began in self._began.items() if began < late]
        self._cut(overdue)

    def cut(self) -> None:
        """Cut off every request under way."""
        with self._lock:
            living = list(self._began)
        self._cut(living)

    def _cut(self, requests: list[socket.socket]) -> None:
        """Close the connections, which their threads then find closed."""
        for request in requests:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has just ended by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("A client of the metrics went away: %s", error)
        else:
            log.error("A request for metrics failed.", exc_info=error)


class Answer(NamedTuple):
    status: HTTPStatus
    type: str
    body: bytes


def _text(status: HTTPStatus, sentence: str) -> Answer:
    return Answer(status, _TEXT, f"{sentence}\n".encode())


def _stale(metrics: Metrics) -> str | None:
    """Return what is wrong with the supervisor's own loop, as a sentence; None when it turns."""
    age_s = metrics.age_s()
    if age_s is None:
        return f"The supervisor of {metrics.pair} has not looked at the pair yet."
    if age_s > LATE_S:
        return f"The supervisor of {metrics.pair} has not looked at the pair for {age_s:.0f} s."
    return None


def healthz(metrics: Metrics) -> Answer:
    """Answer whether the supervisor's loop turns."""
    if stale := _stale(metrics):
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, stale)
    return _text(HTTPStatus.OK, f"The supervisor of {metrics.pair} is at work.")


def protected(metrics: Metrics) -> Answer:
    """Answer whether the pair is in COLO, as far as a supervisor at work knows."""
    sight = metrics.sight
    stale = _stale(metrics)
    if sight is None or stale:
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, str(stale))
    view = sight.view
    if view.protection is Protection.COLO:
        paused = " Automatic failover is paused." if view.paused else ""
        return _text(HTTPStatus.OK, f"{view.name} is protected.{paused}")
    reason = " ".join(view.reason.split())
    why = f"{view.name} is not protected ({view.protection}): {reason}"
    return _text(HTTPStatus.SERVICE_UNAVAILABLE, why)


ROUTES: Mapping[str, Callable[[Metrics], Answer]] = {"/healthz": healthz, "/protected": protected}


class _Handler(BaseHTTPRequestHandler):
    """One request, one answer, and the connection is closed."""

    server: _Server
    timeout: ClassVar[float] = REQUEST_DEADLINE_S
    server_version = f"coloctl/{__version__}"
    sys_version = ""
    error_content_type = _TEXT
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET  # noqa: N815

    def _answer(self) -> Answer:
        if self.command not in ("GET", "HEAD"):
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "Nothing can be changed here.")
        path = self.path.partition("?")[0]
        if path == "/metrics":
            return self._exposition()
        if path in ROUTES:
            return ROUTES[path](self.server.metrics)
        known = ", ".join(("/metrics", *ROUTES))
        return _text(HTTPStatus.NOT_FOUND, f"There is nothing at this path; there is {known}.")

    def _exposition(self) -> Answer:
        try:
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        except (TypeError, ValueError):  # a version that is no version
            encode, content_type = choose_encoder("")
        return Answer(HTTPStatus.OK, content_type, encode(self.server.metrics.registry))

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scrape is an everyday event."""

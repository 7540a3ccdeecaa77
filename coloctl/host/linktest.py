"""Measure the link between two machines: round trip, throughput and the largest frame that passes.

Run as a program on both machines by `check.link`: ``listen ADDRESS TOKEN`` prints the port that it
took, serves one ``connect ADDRESS PORT TOKEN`` and ends. The client prints a `LinkFigures`. The
token keeps others from the port while it is open, which is a few seconds.

Invariant: the whole takes at most `SERVE_DEADLINE_S`, and neither side leaves a process.
"""

from __future__ import annotations

import json
import signal
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

SERVE_DEADLINE_S = 15.0
#: Data is sent for this long.
SENDING_S = 1.0
CONNECT_DEADLINE_S = 3.0
#: A full frame is sent this often, and its echo waited for.
_FRAMES = 3
_ECHO_WAIT_S = 0.3
_PINGS = 20
_BLOCK = bytes(256 * 1024)
_COUNT = struct.Struct("!Q")
# Numbers from linux/in.h and linux/in6.h.
_IP_MTU_DISCOVER, _IP_MTU, _IP_PMTUDISC_DO = 10, 14, 2
_IPV6_MTU_DISCOVER, _IPV6_MTU = 23, 24
#: Header of IP and of UDP, bytes.
_HEADERS = {socket.AF_INET: 20 + 8, socket.AF_INET6: 40 + 8}


@dataclass(frozen=True)
class LinkFigures:
    """The link as one machine measured it towards the other."""

    round_trip_ms: float  #: median of a byte there and back over TCP
    megabytes_s: float  #: 10^6 bytes that the other end received per second
    mtu: int  #: of this machine's device towards that address
    full_frame: bool  #: a frame of that size came back


def serve(address: str, token: bytes) -> None:
    """Print a port of ``address``, and serve one client that sends the token."""
    family = _family(address)
    signal.alarm(int(SERVE_DEADLINE_S))  # without a client, SIGALRM ends the process
    with socket.create_server((address, 0), family=family) as listener:
        port = listener.getsockname()[1]
        with socket.socket(family, socket.SOCK_DGRAM) as frames:
            frames.bind((address, port))
            threading.Thread(target=_return_frames, args=(frames, token), daemon=True).start()
            print(json.dumps({"port": port}), flush=True)
            while not _served(listener.accept()[0], token):
                pass


def _served(client: socket.socket, token: bytes) -> bool:
    """Serve one connection; False where it is a stranger's."""
    with client, suppress(OSError):
        client.settimeout(CONNECT_DEADLINE_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _exactly(client, len(token)) != token:
            return False
        for _ in range(_PINGS):
            client.sendall(_exactly(client, 1))
        received = 0
        while got := client.recv(len(_BLOCK)):
            received += len(got)
        client.sendall(_COUNT.pack(received))
        return True
    return False


def _return_frames(frames: socket.socket, token: bytes) -> None:
    with suppress(OSError):
        while True:
            data, sender = frames.recvfrom(65536)
            if data.startswith(token):
                frames.sendto(token, sender)


def measure(address: str, port: int, token: bytes) -> LinkFigures:
    """Measure the link to a server of this module; raises `OSError`."""
    mtu, passed = _full_frame(address, port, token)
    with socket.create_connection((address, port), CONNECT_DEADLINE_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(token)
        trips = []
        for _ in range(_PINGS):
            begin = time.monotonic()
            sock.sendall(b"x")
            _exactly(sock, 1)
            trips.append(time.monotonic() - begin)
        begin = time.monotonic()
        while time.monotonic() - begin < SENDING_S:
            sock.sendall(_BLOCK)
        sock.shutdown(socket.SHUT_WR)
        (received,) = _COUNT.unpack(_exactly(sock, _COUNT.size))
        took_s = time.monotonic() - begin
    rate = received / took_s / 1e6
    return LinkFigures(statistics.median(trips) * 1000, round(rate, 1), mtu, passed)


def _full_frame(address: str, port: int, token: bytes) -> tuple[int, bool]:
    """Return the MTU towards the address, and whether a frame of that size comes back."""
    family = _family(address)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
        discover = _IP_MTU_DISCOVER if family == socket.AF_INET else _IPV6_MTU_DISCOVER
        sock.setsockopt(level, discover, _IP_PMTUDISC_DO)
        sock.connect((address, port))
        sock.settimeout(_ECHO_WAIT_S)
        mtu = sock.getsockopt(level, _IP_MTU if family == socket.AF_INET else _IPV6_MTU)
        frame = token.ljust(min(mtu, 65535) - _HEADERS[family], b"\0")
        for _ in range(_FRAMES):
            with suppress(OSError):
                sock.send(frame)
                if sock.recv(len(token)) == token:
                    return mtu, True
    return mtu, False


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = sock.recv(size - len(data))
        if not got:
            raise ConnectionError("the other end closed the connection")
        data += got
    return data


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def main(arguments: Sequence[str]) -> None:
    """Run as one end: ``listen ADDRESS TOKEN`` or ``connect ADDRESS PORT TOKEN``."""
    match arguments:
        case ["listen", address, token]:
            serve(address, token.encode())
        case ["connect", address, port, token]:
            print(json.dumps(asdict(measure(address, int(port), token.encode()))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(error.strerror or str(error))

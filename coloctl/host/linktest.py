"""Measure the link between two machines: round trip, throughput and the largest frame that passes.

Run as a program on both machines by `colo.frames`, for `check.link` too: ``listen ADDRESS TOKEN``
prints the port that it took, serves one client and ends. The client is ``connect ADDRESS PORT
TOKEN``, which prints `LinkFigures`, or ``frames ADDRESS PORT TOKEN``, which prints `FrameFigures`
alone. The token keeps others from the port while it is open, which is a few seconds.

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
from typing import Any

SERVE_DEADLINE_S = 15.0
#: Data is sent for this long.
SENDING_S = 1.0
CONNECT_DEADLINE_S = 3.0
#: A frame is sent so often, and its answer waited for so long each time: a lost answer means that a
#: frame is too large, so a busy machine gets its time.
_ECHO_WAITS_S = (0.3, 0.6, 1.2, 2.4)
_PINGS = 20
_BLOCK = bytes(256 * 1024)
_COUNT = struct.Struct("!Q")
#: Asks for a full frame in answer.
_BACK = b"?"
# Numbers from linux/in.h and linux/in6.h.
_IP_MTU_DISCOVER, _IP_MTU, _IP_PMTUDISC_DO = 10, 14, 2
_IPV6_MTU_DISCOVER, _IPV6_MTU = 23, 24
#: Header of IP and of UDP, bytes.
_HEADERS = {socket.AF_INET: 20 + 8, socket.AF_INET6: 40 + 8}


@dataclass(frozen=True)
class FrameFigures:
    """The largest frames of both machines' devices, and whether the other one gets them."""

    mtu: int  #: of this machine's device towards that address
    full_frame: bool  #: a frame of that size arrived there
    back_mtu: int = 0  #: of the other machine's device towards this one; 0: no frame came back
    back_frame: bool = False  #: a frame of that size arrived here


@dataclass(frozen=True)
class LinkFigures(FrameFigures):
    """The link as one machine measured it towards the other."""

    round_trip_ms: float = 0.0  #: median of a byte there and back over TCP
    megabytes_s: float = 0.0  #: 10^6 bytes that the other end received per second


def serve(address: str, token: bytes) -> None:
    """Print a port of ``address``, and serve one client that sends the token."""
    family = _family(address)
    signal.alarm(int(SERVE_DEADLINE_S))  # without a client, SIGALRM ends the process
    with socket.create_server((address, 0), family=family) as listener:
        port = listener.getsockname()[1]
        with socket.socket(family, socket.SOCK_DGRAM) as frames:
            _never_fragment(frames)
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
        with suppress(OSError):
            for _ in range(_PINGS):
                client.sendall(_exactly(client, 1))
            received = 0
            while got := client.recv(len(_BLOCK)):
                received += len(got)
            client.sendall(_COUNT.pack(received))
        return True
    return False


def _return_frames(frames: socket.socket, token: bytes) -> None:
    """Answer each frame by a small one with the own MTU, then by a full one if that is asked for.

    A frame asks for a full one by the byte after the token.
    """
    while True:
        data, sender = frames.recvfrom(65536)
        if not data.startswith(token):
            continue
        mtu = _mtu_towards(sender, frames.family)
        answer = token + _COUNT.pack(mtu)
        with suppress(OSError):  # one that the own device refuses is a frame that does not arrive
            frames.sendto(answer, sender)
            if data[len(token) :] == _BACK:
                frames.sendto(_full(answer, mtu, frames.family), sender)


def measure(address: str, port: int, token: bytes) -> LinkFigures:
    """Measure the link to a server of this module; raises `OSError`."""
    frames = try_frames(address, port, token)
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
    trip_ms = statistics.median(trips) * 1000
    return LinkFigures(**asdict(frames), round_trip_ms=trip_ms, megabytes_s=round(rate, 1))


def measure_frames(address: str, port: int, token: bytes) -> FrameFigures:
    """Try full frames both ways, and let the server of this module end; raises `OSError`."""
    figures = try_frames(address, port, token)
    with socket.create_connection((address, port), CONNECT_DEADLINE_S) as sock:
        sock.sendall(token)
    return figures


def try_frames(address: str, port: int, token: bytes) -> FrameFigures:
    """Send frames of the own device's size, and ask for one of the other's."""
    family = _family(address)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        _never_fragment(sock)
        mtu = _mtu_towards((address, port), family)
        sock.connect((address, port))
        small = len(token) + _COUNT.size
        passed = bool(_answers(sock, _full(token, mtu, family), token, 1))
        answers = _answers(sock, token + _BACK, token, 2)
        back = next((_COUNT.unpack(one[len(token) : small])[0] for one in answers), 0)
        return FrameFigures(mtu, passed, back, any(len(one) > small for one in answers))


def _answers(sock: socket.socket, frame: bytes, token: bytes, wanted: int) -> list[bytes]:
    """Send the frame until so many answers to it came, some times at most; return the answers."""
    answers: list[bytes] = []
    for wait_s in _ECHO_WAITS_S:
        answers = []
        sock.settimeout(wait_s)
        with suppress(OSError):
            sock.send(frame)
            while len(answers) < wanted:
                answer = sock.recv(65536)
                if answer.startswith(token):
                    answers.append(answer)
            break
    return answers


def _full(begin: bytes, mtu: int, family: socket.AddressFamily | int) -> bytes:
    """Return a frame's payload that fills ``mtu`` bytes with its headers."""
    return begin.ljust(min(mtu, 65535) - _HEADERS[socket.AddressFamily(family)], b"\0")


def _never_fragment(sock: socket.socket) -> None:
    """Send each frame as a whole, or not at all."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_DO)


def _mtu_towards(address: tuple[Any, ...], family: socket.AddressFamily | int) -> int:
    """Return the MTU of the own device towards that address."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        if family == socket.AF_INET:
            return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)


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
    """Run as one end: ``listen ADDRESS TOKEN``, or ``connect`` or ``frames ADDRESS PORT TOKEN``."""
    match arguments:
        case ["listen", address, token]:
            serve(address, token.encode())
        case ["connect", address, port, token]:
            print(json.dumps(asdict(measure(address, int(port), token.encode()))))
        case ["frames", address, port, token]:
            print(json.dumps(asdict(measure_frames(address, int(port), token.encode()))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(error.strerror or str(error))

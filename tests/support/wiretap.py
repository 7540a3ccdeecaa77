"""A wire of the lab listened to: the first bytes of each TCP stream, and a pattern that crosses."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from coloctl.lab import netns

_ETH_P_ALL, _SO_RCVBUFFORCE = 0x0003, 33
_TCP, _SYN = 6, 0x02

Side = tuple[str, int]  #: address and port


@dataclass
class Tapped:
    """The streams of one device; a stream is one direction of a connection seen from its start."""

    pattern: bytes
    #: By source and target: the bytes that came first.
    first: dict[tuple[Side, Side], bytes] = field(default_factory=dict)
    #: The ports at whose connections the pattern crossed in plain, the server's.
    seen: set[int] = field(default_factory=set)
    packets: int = 0

    def of_port(self, port: int) -> list[bytes]:
        """The first bytes of every stream from or to a port."""
        return [data for ends, data in self.first.items() if port in (ends[0][1], ends[1][1])]

    def take(self, frame: bytes) -> None:
        """Note one frame; what is no TCP over IPv4 is left out."""
        if frame[12:14] != b"\x08\x00" or frame[23] != _TCP:
            return
        self.packets += 1
        ip = frame[14:]
        tcp = ip[(ip[0] & 15) * 4 : struct.unpack_from(">H", ip, 2)[0] or None]
        ports = struct.unpack_from(">HH", tcp)
        source, target = (
            (socket.inet_ntoa(ip[at : at + 4]), port)
            for at, port in zip((12, 16), ports, strict=True)
        )
        if tcp[13] & _SYN:
            self.first[source, target] = b""
        payload = tcp[(tcp[12] >> 4) * 4 :]
        if payload and not self.first.get((source, target), b"x"):
            self.first[source, target] = payload[:32]
        if self.pattern in payload:
            self.seen |= set(ports)


@contextlib.contextmanager
def tapped(namespace: str, device: str, pattern: bytes) -> Iterator[Tapped]:
    """Listen on ``device`` of a namespace while the context is open."""

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.bind((device, 0))
        return sock

    found, over = Tapped(pattern), threading.Event()
    sock = netns.inside(namespace, listen)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
    sock.settimeout(0.05)

    def read() -> None:
        while True:
            try:
                found.take(sock.recv(1 << 17))
            except TimeoutError:
                if over.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        over.set()
        reader.join()
        sock.close()

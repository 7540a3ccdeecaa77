"""What the lab's tests share: a stand-in for the guest, and questions put to a lab."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from coloctl.lab import layout, link, netns
from coloctl.lab.network import Lab

#: The lab of this test run; two runs may go on at once.
NAME = f"t{os.getpid()}"
NEEDS_ROOT = "namespaces need root here; test_lab_rootless.py is the test without it"


def checksum(data: bytes) -> int:
    """The Internet checksum of RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(ns: str, address: str, deadline_s: float = 1.0) -> bool:
    """Whether one ICMP echo from the namespace was answered in time."""

    def echo() -> bool:
        body = struct.pack("!HH8s", 7, 1, os.urandom(8))
        packet = struct.pack("!BBH", 8, 0, checksum(b"\x08\0\0\0" + body)) + body
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(deadline_s)
            raw.sendto(packet, (address, 0))
            end = time.monotonic() + deadline_s
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    answer = raw.recv(2048)[20:]
                    if answer[0] == 0 and answer[4:] == body:
                        return True
        return False

    return netns.inside(ns, echo)


def stand_in(lab: Lab, where: str) -> None:
    """The guest's address answers in that host, on its bridge, as if a guest were there."""

    def give(ip: Any) -> None:
        bridge = link.index_of(ip, layout.BRIDGE)
        ip.addr("add", index=bridge, address=layout.GUEST, prefixlen=layout.PREFIX_LENGTH)

    link.netlink(layout.namespace(lab.name, where), give)


def tcp_pair(
    listen: tuple[str, str], connect: str, at: int = 0
) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from one namespace to an address in another; ``at`` is its port, or any."""
    ns, address = listen

    def bind() -> socket.socket:
        return socket.create_server((address, at))

    with netns.inside(ns, bind) as server:
        server.settimeout(5)
        port = server.getsockname()[1]
        near = netns.inside(connect, lambda: socket.create_connection((address, port), 5))
        far, _ = server.accept()
    far.settimeout(5)
    return near, far


def transferred(source: socket.socket, target: socket.socket, size: int) -> bool:
    """Whether that many bytes went from one end of the connection to the other."""

    def send() -> None:
        source.sendall(b"x" * size)
        source.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = sum(iter(lambda: len(target.recv(65536)), 0))
    sender.join()
    return received == size


def leftovers(name: str) -> list[str]:
    """Every trace of that lab on this machine: files, mounts, and processes in its namespaces."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in mounts if f"/{name}-" in line] + [
        str(file) for file in netns.RUN.glob(f"{name}-*")
    ]

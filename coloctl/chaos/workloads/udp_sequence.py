"""Send numbered datagrams at the client's own pace and note which come back.

Started as a process by `chaos.workloads`; the port is that of `lab.guest`.
"""

from __future__ import annotations

import socket
import struct
import threading
import time

from coloctl.chaos.workloads import PacedParams
from coloctl.chaos.workloads.client import Client, ClientKind, main
from coloctl.chaos.workloads.history import OpStatus
from coloctl.lab.guest import ECHO_PORT

#: How long the last datagrams may take after the end of the load, seconds: longer than a failover.
STRAGGLERS_S = 3.0
#: Client and number, padded so that a datagram of another length is none of ours.
_DATAGRAM = struct.Struct("!II56x")


def datagram(client: int, n: int) -> bytes:
    """Build the datagram of that client and number."""
    return _DATAGRAM.pack(client, n)


def numbered(client: int, data: bytes) -> int | None:
    """Return the number of this client's datagram, or None for one that was never sent."""
    if len(data) != _DATAGRAM.size or data[8:].strip(b"\0"):
        return None
    who, n = _DATAGRAM.unpack(data)
    return int(n) if who == client else None


def note_echoes(
    client: Client[PacedParams], near: socket.socket, done: threading.Event
) -> set[int]:
    """Note every echo until ``done``; return their numbers."""
    echoed: set[int] = set()
    while not done.is_set():
        try:
            data = near.recv(2048)
        except OSError:  # nothing came for a while, or the guest's port is closed now
            continue
        n = numbered(client.number, data)
        if n is None or n >= client.n:
            client.note(OpStatus.FAIL, -1, "a datagram that was never sent")
        elif n in echoed:
            client.note(OpStatus.OK, n, f="duplicate")
        else:
            echoed.add(n)
            client.note(OpStatus.OK, n)
    return echoed


def work(client: Client[PacedParams]) -> None:
    """Send one datagram after the other until the load ends, then await the last echoes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.settimeout(0.2)
        near.connect((client.host, ECHO_PORT))
        done, echoed = threading.Event(), set[int]()
        listener = threading.Thread(
            target=lambda: echoed.update(note_echoes(client, near, done)), daemon=True
        )
        listener.start()
        while client.paused(client.params.pause_ms):
            client.note(OpStatus.INVOKE)
            client.n += 1
            try:
                near.send(datagram(client.number, client.n - 1))
            except OSError as error:  # lost on the first metre: a datagram may be
                client.note(OpStatus.INFO, client.n - 1, str(error))
        time.sleep(STRAGGLERS_S)
        done.set()
        listener.join()
    for n in sorted(set(range(client.n)) - echoed):
        client.note(OpStatus.INFO, n)


if __name__ == "__main__":
    main(ClientKind(PacedParams, work))

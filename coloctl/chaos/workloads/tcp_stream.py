"""Keep a long-lived stream both ways: every byte that comes back is checked.

Started as a process by `chaos.workloads`; the port is that of `lab.guest`. A few chunks are under
way at any time. Their bytes follow from the client's number and the position in its stream alone,
so that a byte that is lost, doubled or of another client shows.
"""

from __future__ import annotations

import hashlib
from collections import deque

from coloctl.chaos.workloads import StreamParams
from coloctl.chaos.workloads.client import Client, ClientKind, ConnectionLost, GuestConnection, main
from coloctl.chaos.workloads.history import OpStatus
from coloctl.lab.guest import ECHO_PORT


def chunk(client: int, n: int, size: int) -> bytes:
    """Return the bytes of chunk ``n`` of that client's stream."""
    return hashlib.shake_128(f"{client}:{n}".encode()).digest(size)


def wrong_byte(sent: bytes, came: bytes) -> int | None:
    """Find the first place where two chunks of one length differ."""
    return next(
        (at for at, (one, two) in enumerate(zip(sent, came, strict=True)) if one != two), None
    )


def work(client: Client[StreamParams]) -> None:
    """Keep a window of chunks under way until the load ends, then await the rest."""
    under_way: deque[int] = deque()
    with GuestConnection(client.host, ECHO_PORT) as line:
        client.opened(line.identity())
        try:
            while client.paused(client.params.pause_ms):
                while len(under_way) < client.params.window:
                    client.note(OpStatus.INVOKE)
                    under_way.append(client.n)
                    client.n += 1
                    line.send(chunk(client.number, under_way[-1], client.params.chunk_bytes))
                check(client, line, under_way)
            while under_way:
                check(client, line, under_way)
        except ConnectionLost:
            for n in under_way:
                client.note(OpStatus.INFO, n)
            raise
        client.closed(line.identity())


def check(client: Client[StreamParams], line: GuestConnection, under_way: deque[int]) -> None:
    """Check that the oldest chunk came back as it was sent; raises `ConnectionLost` otherwise."""
    n, size = under_way[0], client.params.chunk_bytes
    came = line.receive(size)
    if (at := wrong_byte(chunk(client.number, n, size), came)) is not None:
        raise ConnectionLost(f"wrong byte at {n * size + at}", complete=True)
    client.note(OpStatus.OK, under_way.popleft())


if __name__ == "__main__":
    main(ClientKind(StreamParams, work))

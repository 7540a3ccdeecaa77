"""Provide what the programs of clients share: their start, their errors, one connection each.

Called by each program of `chaos.workloads`. A program is ``main(KIND)``: a thread per client works
until standard input ends. A client has one connection that is never renewed; what ends it is noted,
and ends the client.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.workloads.history import Op, OpStatus

#: No reply for so long means that the connection hangs, seconds. Linux gives up a connection only
#: after minutes; a client of a protected guest should never wait longer than a failover.
REPLY_DEADLINE_S = 20.0
#: The guest may still be booting when the clients come, seconds.
CONNECT_DEADLINE_S = 60.0

P = TypeVar("P", bound=Params)


class ConnectionLost(Exception):
    """The connection is not what it was. A ``complete`` message needs no number of a record."""

    def __init__(self, message: str, *, complete: bool = False) -> None:
        super().__init__(message)
        self.complete = complete


_writing = threading.Lock()


def write(op: Op) -> None:
    """Write one line of the history to standard output; lines of many threads stay whole."""
    with _writing:
        sys.stdout.write(op.line() + "\n")
        sys.stdout.flush()


@dataclass
class Client(Generic[P]):
    """One client: its number, the host that it asks, and where it notes what it does."""

    number: int
    first: int  #: the number of the first client of its workload, which names what they share
    host: str
    params: P
    ending: threading.Event
    record: Callable[[Op], None] = write
    place: float = 0.0  #: among the clients of its workload: 0 for the first, below 1 for the last
    n: int = 0  #: the operation that comes next
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.number)

    def note(self, outcome: OpStatus, n: int | None = None, note: str = "", **said: Any) -> None:
        """Write a line of the history, about operation ``n`` (by default the one under way)."""
        n = self.n if n is None else n
        self.record(Op(time.monotonic(), self.number, outcome, n, note, **said))

    def opened(self, identity: object) -> None:
        """Note that the connection of that identity is open."""
        self.note(OpStatus.INFO, -1, f"opened {identity}")

    def closed(self, identity: object) -> None:
        """Note that the connection of that identity is closed in order."""
        self.note(OpStatus.INFO, -1, f"closed {identity}")

    def paused(self, pause_ms: float) -> bool:
        """Pause, then return whether to go on; a client that is to end does not wait."""
        return not self.ending.wait(pause_ms / 1000)

    @contextmanager
    def under_way(self, f: str = "", key: str = "", value: Any = None) -> Iterator[None]:
        """Note an operation as sent, and as of unknown fate when its connection breaks in it."""
        said = {"f": f, "key": key, "value": value}
        self.note(OpStatus.INVOKE, **said)
        try:
            yield
        except BaseException:
            self.note(OpStatus.INFO, **said)
            raise


class GuestConnection:
    """A TCP connection to a service of the guest; every failure of it is a `ConnectionLost`."""

    def __init__(self, host: str, port: int) -> None:
        try:
            self._socket = socket.create_connection((host, port), REPLY_DEADLINE_S)
        except OSError as error:
            raise ConnectionLost(f"never connected: {error}", complete=True) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def identity(self) -> str:
        """Return what distinguishes this connection from any other.

        Raises `ConnectionLost` when there is none any more.
        """
        try:
            self._socket.getpeername()
            return str(self._socket.getsockname()[1])
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def send(self, data: bytes) -> None:
        """Send all bytes; raises `ConnectionLost` when that fails."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionLost(str(error) or "no room for what is sent") from error

    def receive(self, size: int) -> bytes:
        """Receive the next ``size`` bytes.

        Raises `ConnectionLost` when the guest closes, or is silent for `REPLY_DEADLINE_S`.
        """
        while len(self._came) < size:
            self._more()
        return self._take(size)

    def receive_until(self, end: bytes) -> bytes:
        """Receive all bytes up to and with the next ``end``.

        Raises `ConnectionLost` as `receive`.
        """
        while (at := self._came.find(end)) < 0:
            self._more()
        return self._take(at + len(end))

    def _more(self) -> None:
        try:
            came = self._socket.recv(65536)
        except TimeoutError as error:
            raise ConnectionLost(f"no reply for {REPLY_DEADLINE_S:.0f} s") from error
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        if not came:
            raise ConnectionLost("closed by the guest")
        self._came += came

    def _take(self, size: int) -> bytes:
        taken = bytes(self._came[:size])
        del self._came[:size]
        return taken


@dataclass(frozen=True)
class ClientKind(Generic[P]):
    """The operations of one kind of client, and how to ask what the guest holds.

    ``read_back`` gets the host, the parameters and the numbers of the clients.
    """

    params: type[P]
    work: Callable[[Client[P]], None]
    read_back: Callable[[str, P, Sequence[int]], Any] = lambda host, params, numbers: None


def work_to_end(work: Callable[[Client[P]], None], client: Client[P]) -> None:
    """Run the client to its end; what broke its connection is in its history."""
    try:
        work(client)
    except ConnectionLost as error:
        note = str(error) if error.complete else f"broke at record {client.n}: {error}"
        client.note(OpStatus.FAIL, -1, note)


def main(work: ClientKind[P], arguments: Sequence[str] | None = None) -> None:
    """Run clients until standard input ends; with ``--read-back`` print what the guest holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--params", default="{}", help="JSON, the kind's own")
    parser.add_argument("--read-back", action="store_true")
    options = parser.parse_args(arguments)
    params = work.params.model_validate_json(options.params)
    numbers = range(options.first, options.first + options.clients)
    if options.read_back:
        print(json.dumps(work.read_back(options.host, params, numbers)))
        return
    ending = threading.Event()
    clients = [
        Client(number, options.first, options.host, params, ending, place=at / len(numbers))
        for at, number in enumerate(numbers)
    ]
    threads = [
        threading.Thread(target=work_to_end, args=(work.work, client), daemon=True)
        for client in clients
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ending.set()
    for thread in threads:
        thread.join(REPLY_DEADLINE_S + CONNECT_DEADLINE_S)

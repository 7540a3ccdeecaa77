"""Provide what the programs of clients share: their start, their errors, one connection each.

Called by each program of `chaos.workloads`. A program is ``main(WORK)``: a thread per client works
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from coloctl.chaos.scenario.values import Params
from coloctl.chaos.workloads.history import OpStatus
from coloctl.chaos.workloads.recorder import CONNECT_DEADLINE_S, REPLY_DEADLINE_S, Recorder

P = TypeVar("P", bound=Params)


class Broken(Exception):
    """The connection is not what it was."""


class Complete(Broken):
    """The same, with a message that needs no addition."""


@dataclass
class Client(Generic[P]):
    """One client: its number, the host that it asks, and where it notes what it does."""

    number: int
    first: int  #: the number of the first client of its workload, which names what they share
    host: str
    params: P
    record: Recorder
    ending: threading.Event
    n: int = 0  #: the operation that comes next
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.number)

    def note(self, outcome: OpStatus, n: int | None = None, note: str = "", **said: Any) -> None:
        """Write a line of the history, about operation ``n`` (by default the one under way)."""
        self.record(self.number, outcome, self.n if n is None else n, note, **said)

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


class Line:
    """A TCP connection to a service of the guest; every failure of it is a `Broken`."""

    def __init__(self, host: str, port: int) -> None:
        try:
            self._socket = socket.create_connection((host, port), REPLY_DEADLINE_S)
        except OSError as error:
            raise Complete(f"never connected: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def identity(self) -> str:
        """Return what distinguishes this connection from any other.

        Raises `Broken` when there is none any more.
        """
        try:
            self._socket.getpeername()
            return str(self._socket.getsockname()[1])
        except OSError as error:
            raise Broken(str(error)) from error

    def send(self, data: bytes) -> None:
        """Send all bytes; raises `Broken` when that fails."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Broken(str(error) or "no room for what is sent") from error

    def receive(self, size: int) -> bytes:
        """Receive the next ``size`` bytes."""
        while len(self._came) < size:
            self._more()
        return self._take(size)

    def receive_until(self, end: bytes) -> bytes:
        """Receive all bytes up to and with the next ``end``."""
        while (at := self._came.find(end)) < 0:
            self._more()
        return self._take(at + len(end))

    def _more(self) -> None:
        try:
            came = self._socket.recv(65536)
        except TimeoutError as error:
            raise Broken(f"no reply for {REPLY_DEADLINE_S:.0f} s") from error
        except OSError as error:
            raise Broken(str(error)) from error
        if not came:
            raise Broken("closed by the guest")
        self._came += came

    def _take(self, size: int) -> bytes:
        taken = bytes(self._came[:size])
        del self._came[:size]
        return taken


@dataclass(frozen=True)
class Work(Generic[P]):
    """The act of one kind of client, and how to ask what the guest holds.

    ``read_back`` gets the host, the parameters and the numbers of the clients.
    """

    params: type[P]
    work: Callable[[Client[P]], None]
    read_back: Callable[[str, P, Sequence[int]], Any] = lambda host, params, numbers: None


def work_to_end(work: Callable[[Client[P]], None], client: Client[P]) -> None:
    """Run the client to its end; what broke its connection is in its history."""
    try:
        work(client)
    except Complete as error:
        client.note(OpStatus.FAIL, -1, str(error))
    except Broken as error:
        client.note(OpStatus.FAIL, -1, f"broke at record {client.n}: {error}")


def main(work: Work[P], arguments: Sequence[str] | None = None) -> None:
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
    ending, record = threading.Event(), Recorder()
    threads = [
        threading.Thread(
            target=work_to_end,
            args=(
                work.work,
                Client(number, options.first, options.host, params, record, ending),
            ),
            daemon=True,
        )
        for number in numbers
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ending.set()
    for thread in threads:
        thread.join(REPLY_DEADLINE_S + CONNECT_DEADLINE_S)

"""Append numbered records, each client over one connection that is never renewed.

Called by `chaos.workloads.clients` as a process of its own (``python -m
coloctl.chaos.workloads.redis_appends``) inside the network namespace of the clients, and by
`chaos.workloads.store` for its connection. It writes its history to standard output, and ends when
its standard input does.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.connection import Connection
from redis.exceptions import RedisError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from coloctl.chaos.workloads.history import OpStatus
from coloctl.chaos.workloads.recorder import CONNECT_DEADLINE_S, REPLY_DEADLINE_S, Recorder


def key(client: int) -> str:
    """Return the name of the list that holds the records of one client."""
    return f"records:{client}"


@retry(
    retry=retry_if_exception_type(RedisError),
    stop=stop_after_delay(CONNECT_DEADLINE_S),
    wait=wait_fixed(0.2),
    reraise=True,
)
def connect(host: str, port: int) -> Any:
    """Open one connection to redis; raises `RedisError` when there is none in time."""
    make: Any = Connection  # redis-py leaves its constructor untyped
    connection = make(
        host=host, port=port, socket_timeout=REPLY_DEADLINE_S, socket_connect_timeout=5, protocol=2
    )
    connection.connect()
    return connection


def ask(connection: Any, *command: Any) -> Any:
    """Send one command and return the reply; raises `RedisError` when the connection is broken."""
    connection.send_command(*command)
    return connection.read_response()


@dataclass(frozen=True)
class Rhythm:
    """The times of appends: a pause after each, in bursts where there is an idle time.

    All clients of one machine burst together: their clock is the same. Each connection is opened
    ``apart_s`` after the one before.
    """

    pause_s: float = 0.0
    burst_s: float = 0.0
    idle_s: float = 0.0
    apart_s: float = 0.0

    def wait_s(self, now: float) -> float:
        """Compute the wait before the next record, at that moment of the monotonic clock."""
        if not self.idle_s:
            return self.pause_s
        into_s = now % (self.burst_s + self.idle_s)
        silent_s = self.burst_s + self.idle_s - into_s
        return self.pause_s if into_s < self.burst_s else silent_s


def append_records(
    host: str, port: int, client: int, record: Recorder, ending: threading.Event, *, rhythm: Rhythm
) -> None:
    """Append records 0, 1, 2, ... until ``ending``; the first error ends this client."""
    try:
        connection = connect(host, port)
        record(client, OpStatus.INFO, -1, f"opened {ask(connection, 'CLIENT', 'ID')}")
    except (RedisError, OSError) as error:
        record(client, OpStatus.FAIL, -1, f"never connected: {error}")
        return
    n = 0
    try:
        while not ending.is_set():
            record(client, OpStatus.INVOKE, n)
            ask(connection, "RPUSH", key(client), n)
            record(client, OpStatus.OK, n)
            n += 1
            if wait_s := rhythm.wait_s(time.monotonic()):
                ending.wait(wait_s)
        record(client, OpStatus.INFO, -1, f"closed {ask(connection, 'CLIENT', 'ID')}")
    except (RedisError, OSError) as error:
        record(client, OpStatus.INFO, n)
        record(client, OpStatus.FAIL, -1, f"broke at record {n}: {error}")
    finally:
        connection.disconnect()


def read_back(host: str, port: int, clients: Sequence[int]) -> Mapping[int, list[int]]:
    """Return the records that the server holds now, per client, over a new connection."""
    connection = connect(host, port)
    try:
        return {
            client: [int(value) for value in ask(connection, "LRANGE", key(client), 0, -1)]
            for client in clients
        }
    finally:
        connection.disconnect()


def main(arguments: Sequence[str] | None = None) -> None:
    """Append until standard input ends; with ``--read-back`` print what the server holds."""
    parser = argparse.ArgumentParser(prog="python -m coloctl.chaos.workloads.redis_appends")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="between two records")
    parser.add_argument("--burst-s", type=float, default=0.0, help="append for so long, then")
    parser.add_argument("--idle-s", type=float, default=0.0, help="be silent for so long")
    parser.add_argument("--arrive-s", type=float, default=0.0, help="all have come after so long")
    parser.add_argument("--read-back", action="store_true")
    options = parser.parse_args(arguments)
    numbers = range(options.first, options.first + options.clients)
    if options.read_back:
        for client, records in read_back(options.host, options.port, numbers).items():
            print(client, *records)
        return
    ending, record = threading.Event(), Recorder()
    rhythm = Rhythm(
        options.pause_ms / 1000, options.burst_s, options.idle_s, options.arrive_s / len(numbers)
    )
    threads = [
        threading.Thread(
            target=append_records,
            args=(options.host, options.port, n, record, ending),
            kwargs={"rhythm": rhythm},
            daemon=True,
        )
        for n in numbers
    ]
    for thread in threads:
        thread.start()
        time.sleep(rhythm.apart_s)
    sys.stdin.read()
    ending.set()
    for thread in threads:
        thread.join(REPLY_DEADLINE_S + CONNECT_DEADLINE_S)


if __name__ == "__main__":
    main()

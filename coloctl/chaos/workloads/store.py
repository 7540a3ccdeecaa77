"""Connect a client to redis: one connection, never renewed, and transactions over it.

Called by `chaos.workloads.guest_audit`, `chaos.workloads.redis_appends`,
`chaos.workloads.redis_registers` and `chaos.workloads.redis_transfers`; the port is that of
`lab.guest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.connection import Connection
from redis.exceptions import RedisError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from coloctl.chaos.workloads.client import CONNECT_DEADLINE_S, REPLY_DEADLINE_S, ConnectionLost
from coloctl.lab.guest import REDIS_PORT


@retry(
    retry=retry_if_exception_type(RedisError),
    stop=stop_after_delay(CONNECT_DEADLINE_S),
    wait=wait_fixed(0.2),
    reraise=True,
)
def connect(host: str) -> Any:
    """Open one connection to redis at ``ADDRESS`` or ``ADDRESS:PORT``.

    Raises `RedisError` when there is none in time.
    """
    address, _, port = host.partition(":")
    make: Any = Connection  # redis-py leaves its constructor untyped
    connection = make(
        host=address,
        port=int(port or REDIS_PORT),
        socket_timeout=REPLY_DEADLINE_S,
        socket_connect_timeout=5,
        protocol=2,
    )
    connection.connect()
    return connection


class Store:
    """An open connection to redis; any error of it is a `ConnectionLost`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def ask(self, *command: Any) -> Any:
        """Send one command and return the reply."""
        self._connection.send_command(*command)
        return self._connection.read_response()

    def at_once(self, *commands: Sequence[Any]) -> list[Any]:
        """Run commands all at once, or none of them; return their replies."""
        # In one piece: both guests of a pair are likelier to answer it in the same way.
        whole = (("MULTI",), *commands, ("EXEC",))
        self._connection.send_packed_command(self._connection.pack_commands(whole))
        for _ in range(1 + len(commands)):
            self._connection.read_response()
        replies: list[Any] = self._connection.read_response()
        return replies

    def identity(self) -> int:
        """Return the number that redis itself gave to this connection."""
        return int(self.ask("CLIENT", "ID"))


@contextmanager
def store(host: str) -> Iterator[Store]:
    """Open a connection to the guest's redis for the length of the block.

    Raises `ConnectionLost` when it cannot be opened, or when the block's use of it fails.
    """
    try:
        connection = connect(host)
    except (RedisError, OSError) as error:
        raise ConnectionLost(f"never connected: {error}", complete=True) from error
    try:
        yield Store(connection)
    except (RedisError, OSError) as error:
        raise ConnectionLost(str(error)) from error
    finally:
        connection.disconnect()

"""Connect a client to redis: one connection, never renewed, and transactions over it.

Called by `chaos.workloads.redis_registers`, `chaos.workloads.redis_transfers` and
`chaos.workloads.guest_audit`; the port is that of `lab.guest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError

from coloctl.chaos.workloads.client import Broken, Complete
from coloctl.chaos.workloads.redis_appends import ask, connect
from coloctl.lab.guest import REDIS_PORT


class Store:
    """An open connection to redis; any error of it is a `Broken`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def ask(self, *command: Any) -> Any:
        """Send one command and return the reply."""
        return ask(self._connection, *command)

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
    """Open a connection to the guest's redis for the length of the block."""
    try:
        connection = connect(host, REDIS_PORT)
    except (RedisError, OSError) as error:
        raise Complete(f"never connected: {error}") from error
    try:
        yield Store(connection)
    except (RedisError, OSError) as error:
        raise Broken(str(error)) from error
    finally:
        connection.disconnect()

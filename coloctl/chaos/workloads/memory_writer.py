"""Change memory of the guest in place: one byte of every page of so many MiB, again and again.

Started as a process by `bench.dirtied`; calls `chaos.workloads.store` for its connection. It is no
kind of work that a scenario can name.

Invariant: a round changes the pages that the round before changed, and redis writes none of it to
its file. So a checkpoint carries these pages once, however many rounds lie between two of them.
"""

from __future__ import annotations

import json

from pydantic import Field

from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.workloads.client import Client, ClientKind, main
from coloctl.chaos.workloads.history import OpStatus
from coloctl.chaos.workloads.store import store

PAGE = 4096
#: A string of redis grows with its first byte at the end; each further write is in place.
_ROUND = f"""
redis.set_repl(redis.REPL_NONE)
for at = tonumber(ARGV[1]) - {PAGE}, 0, -{PAGE} do
  redis.call('SETRANGE', KEYS[1], at, ARGV[2])
end
return 1
"""


class MemoryParams(Params):
    """The memory that a round changes, and the pause after each."""

    mib: int = Field(ge=1, le=64)
    pause_ms: float = Field(default=100.0, ge=0)


def work(client: Client[MemoryParams]) -> None:
    """Make rounds 0, 1, 2, ... until the load ends, then release the memory."""
    params = client.params
    with store(client.host) as server:
        client.opened(server.identity())
        going_on = True
        while going_on:
            with client.under_way():
                byte = "ab"[client.n % 2]
                server.ask("EVAL", _ROUND, 1, f"memory:{client.number}", params.mib << 20, byte)
            client.note(OpStatus.OK)
            client.n += 1
            going_on = client.paused(params.pause_ms)
        server.ask("DEL", f"memory:{client.number}")
        client.closed(server.identity())


def arguments(host: str, params: MemoryParams) -> list[str]:
    """Return the words after the Python that start one client."""
    return ["-m", __name__, "--host", host, "--params", json.dumps(params.model_dump())]


if __name__ == "__main__":
    main(ClientKind(MemoryParams, work))

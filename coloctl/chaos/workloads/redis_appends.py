"""Append numbered records to lists of redis, each client to a list of its own.

Started as a process by `chaos.workloads`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from coloctl.chaos.workloads import AppendsParams
from coloctl.chaos.workloads.client import Client, ClientKind, main
from coloctl.chaos.workloads.history import OpStatus
from coloctl.chaos.workloads.store import store


def key(client: int) -> str:
    """Return the name of the list that holds the records of one client."""
    return f"records:{client}"


def wait_ms(params: AppendsParams, now_s: float) -> float:
    """Compute the wait before the next record, at that moment of the monotonic clock.

    All clients of one machine burst together: their clock is the same.
    """
    if not params.idle_s:
        return params.pause_ms
    into_s = now_s % (params.burst_s + params.idle_s)
    silent_s = params.burst_s + params.idle_s - into_s
    return params.pause_ms if into_s < params.burst_s else silent_s * 1000


def work(client: Client[AppendsParams]) -> None:
    """Append records 0, 1, 2, ... until the load ends."""
    params = client.params
    client.paused(client.place * params.arrive_s * 1000)
    with store(client.host) as server:
        client.opened(server.identity())
        going_on = True
        while going_on:
            with client.under_way():
                server.ask("RPUSH", key(client.number), client.n)
            client.note(OpStatus.OK)
            client.n += 1
            going_on = client.paused(wait_ms(params, time.monotonic()))
        client.closed(server.identity())


def read_back(host: str, params: AppendsParams, numbers: Sequence[int]) -> Any:
    """Return the records that redis holds now, per client."""
    with store(host) as server:
        lists = ((n, server.ask("LRANGE", key(n), 0, -1)) for n in numbers)
        return {n: [int(value) for value in held] for n, held in lists}


if __name__ == "__main__":
    main(ClientKind(AppendsParams, work, read_back))

"""Write, read, and compare and set a few registers of redis that the clients share.

Started as a process by `chaos.workloads`. Every value is written once only, by one client, so that
a read shows which write it saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coloctl.chaos.workloads import RegistersParams
from coloctl.chaos.workloads.client import Client, ClientKind, main
from coloctl.chaos.workloads.history import OpStatus
from coloctl.chaos.workloads.store import Store, store

#: 1 when KEYS[1] held the first argument and now holds the second. An absent register is "".
CAS = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
#: How many values a client may write.
VALUES = 1_000_000


def registers(params: RegistersParams) -> list[str]:
    """List the names of the registers."""
    return [f"r{n}" for n in range(params.keys)]


def key(first: int, name: str) -> str:
    """Return the key of a register; the first client keeps workloads of one guest apart."""
    return f"register:{first}:{name}"


def number(value: bytes | None) -> int | None:
    """Convert a reply of redis to a number; None for an absent register."""
    return None if value is None else int(value)


def operate(
    client: Client[RegistersParams], server: Store, f: str, name: str, seen: int | None
) -> int | None:
    """Perform one operation and return what the client sees there now.

    ``seen`` is what this client saw there last.
    """
    at, mine = key(client.first, name), client.number * VALUES + client.n
    if f == "read":
        with client.under_way(f, name):
            seen = number(server.ask("GET", at))
        client.note(OpStatus.OK, f=f, key=name, value=seen)
        return seen
    if f == "write":
        with client.under_way(f, name, mine):
            server.ask("SET", at, mine)
        client.note(OpStatus.OK, f=f, key=name, value=mine)
        return mine
    with client.under_way(f, name, [seen, mine]):
        done = server.ask("EVAL", CAS, 1, at, "" if seen is None else seen, mine)
    client.note(OpStatus.OK if done else OpStatus.FAIL, f=f, key=name, value=[seen, mine])
    return mine if done else seen


def work(client: Client[RegistersParams]) -> None:
    """Perform one operation after the other, chosen by chance, until the load ends."""
    names = registers(client.params)
    seen: dict[str, int | None] = dict.fromkeys(names)
    with store(client.host) as server:
        client.opened(server.identity())
        while client.paused(client.params.pause_ms):
            name = client.chance.choice(names)
            f = client.chance.choice(("read", "read", "write", "cas"))
            seen[name] = operate(client, server, f, name, seen[name])
            client.n += 1
        client.closed(server.identity())


def read_back(host: str, params: RegistersParams, numbers: Sequence[int]) -> Any:
    """Return the value of each register, read at one moment."""
    names = registers(params)
    with store(host) as server:
        held = server.at_once(*(("GET", key(numbers[0], name)) for name in names))
    return {name: number(value) for name, value in zip(names, held, strict=True)}


if __name__ == "__main__":
    main(ClientKind(RegistersParams, work, read_back))

"""Move money between accounts of redis; a transfer proves itself (see `transfer`).

Started as a process by `chaos.workloads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coloctl.chaos.workloads import TransfersParams
from coloctl.chaos.workloads.client import Client, ClientKind, main
from coloctl.chaos.workloads.history import OpStatus
from coloctl.chaos.workloads.store import Store, store


def accounts(params: TransfersParams) -> list[str]:
    """List the names of the accounts."""
    return [f"account{n}" for n in range(params.accounts)]


def key(first: int, name: object) -> str:
    """Return the key of an account; the first client keeps workloads of one guest apart."""
    return f"bank:{first}:{name}"


def transfer(first: int, client: int, n: int, move: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Build the commands of one transfer.

    It leaves its own number, so that it can be proven later.
    """
    return [
        ("DECRBY", key(first, move["from"]), move["amount"]),
        ("INCRBY", key(first, move["to"]), move["amount"]),
        ("SET", key(first, f"done:{client}"), n),
    ]


def balances(bank: Store, first: int, names: Sequence[str]) -> dict[str, int]:
    """Return what all accounts hold at one moment."""
    held = bank.at_once(*(("GET", key(first, name)) for name in names))
    return {name: int(value) for name, value in zip(names, held, strict=True)}


def work(client: Client[TransfersParams]) -> None:
    """Make one transfer after the other, and now and then read all accounts."""
    params, first, names = client.params, client.first, accounts(client.params)
    with store(client.host) as bank:
        identity = bank.identity()
        client.opened(identity)
        # The first client to come opens all accounts at once; nothing happens where they exist.
        opening = [word for name in names for word in (key(first, name), params.balance)]
        bank.ask("MSETNX", *opening)
        while client.paused(params.pause_ms):
            if params.read_every and client.n % params.read_every == params.read_every - 1:
                with client.under_way("read"):
                    seen = balances(bank, first, names)
                client.note(OpStatus.OK, f="read", value=seen)
            else:
                source, target = client.chance.sample(names, 2)
                move = {"from": source, "to": target, "amount": client.chance.randint(1, 20)}
                with client.under_way("transfer", value=move):
                    bank.at_once(*transfer(first, client.number, client.n, move))
                client.note(OpStatus.OK, f="transfer", value=move)
            client.n += 1
        client.closed(bank.identity())


def read_back(host: str, params: TransfersParams, numbers: Sequence[int]) -> Any:
    """Return all balances and each client's last transfer, read at one moment."""
    first, names = numbers[0], accounts(params)
    with store(host) as bank:
        held = bank.at_once(
            *(("GET", key(first, name)) for name in names),
            *(("GET", key(first, f"done:{client}")) for client in numbers),
        )
    moneys = zip(names, held[: len(names)], strict=True)
    lasts = zip(numbers, held[len(names) :], strict=True)
    return {
        "balances": {name: int(value) for name, value in moneys if value is not None},
        "done": {client: int(n) for client, n in lasts if n is not None},
    }


if __name__ == "__main__":
    main(ClientKind(TransfersParams, work, read_back))

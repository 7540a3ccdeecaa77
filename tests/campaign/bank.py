"""Transfer money between accounts of a PostgreSQL until told to stop; the clients of the campaign.

Started by `campaign.py` in the client's namespace of a lab: ``python bank.py run HOST CLIENTS``
works until its standard input closes, then prints one JSON object; ``first`` in it is what the
first connection of the guest's life took, and its first question, seconds. ``python bank.py audit
HOST`` prints what the database holds. Every transfer has a number of its own, so that one that was
acknowledged is found again or is missing.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

import psycopg

ACCOUNTS = 64
OPENING = 1000

_SETUP = f"""
CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (client int, number int, PRIMARY KEY (client, number));
INSERT INTO account SELECT n, {OPENING} FROM generate_series(1, {ACCOUNTS}) n
    ON CONFLICT DO NOTHING;
"""
_TRANSFER = """
BEGIN;
UPDATE account SET balance = balance + ({first}) WHERE id = {low};
UPDATE account SET balance = balance + ({second}) WHERE id = {high};
INSERT INTO ledger VALUES ({client}, {number});
COMMIT;
"""


def connect(host: str) -> psycopg.Connection[Any]:
    """Open a connection that waits as long as TCP does."""
    return psycopg.connect(
        host=host, user="postgres", dbname="postgres", autocommit=True, connect_timeout=60
    )


class Client:
    """One connection, one transfer after another."""

    def __init__(self, number: int, host: str, stop: threading.Event) -> None:
        self.number, self.host, self.stop = number, host, stop
        self.acknowledged: list[tuple[int, float, float]] = []  #: number, asked at, answered at
        self.unknown: list[int] = []  #: asked and never answered: may be there or not
        self.errors: list[str] = []
        self.connections = 0

    def run(self) -> None:
        """Work until told to stop; a connection that was cut is an error and is opened again."""
        chance, number = random.Random(self.number), 0
        while not self.stop.is_set():
            try:
                with connect(self.host) as connection:
                    self.connections += 1
                    while not self.stop.is_set():
                        number += 1
                        self._transfer(connection, chance, number)
            except psycopg.Error as error:
                self.errors.append(f"{time.monotonic():.2f} {str(error).strip().splitlines()[0]}")
                time.sleep(0.5)

    def _transfer(
        self, connection: psycopg.Connection[Any], chance: random.Random, number: int
    ) -> None:
        low, high = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
        amount = chance.randint(-9, 9)
        began = time.monotonic()
        try:
            connection.execute(
                _TRANSFER.format(
                    first=amount, second=-amount, low=low, high=high,
                    client=self.number, number=number,
                ).encode()
            )  # fmt: skip
        except psycopg.Error:
            self.unknown.append(number)
            raise
        self.acknowledged.append((number, began, time.monotonic()))


def run(host: str, clients: int) -> dict[str, Any]:
    """Work until standard input ends, and tell what every client saw."""
    began = time.monotonic()
    with connect(host) as connection:
        connected = time.monotonic()
        connection.execute(b"SELECT 1")
        answered = time.monotonic()
        connection.execute(_SETUP.encode())
    stop = threading.Event()
    working = [Client(number, host, stop) for number in range(clients)]
    threads = [threading.Thread(target=client.run, daemon=True) for client in working]
    for thread in threads:
        thread.start()
    print("working", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join(60)
    return {
        "acknowledged": {client.number: client.acknowledged for client in working},
        "unknown": {client.number: client.unknown for client in working},
        "errors": [error for client in working for error in client.errors],
        "first": [round(connected - began, 3), round(answered - connected, 3)],
        "connections": [client.connections for client in working],
    }


def audit(host: str) -> dict[str, Any]:
    """Ask for the sum of all accounts and the number of every transfer that is there."""
    with connect(host) as connection:
        row = connection.execute("SELECT sum(balance)::bigint, count(*) FROM account").fetchone()
        assert row is not None
        listed = connection.execute("SELECT client, number FROM ledger").fetchall()
    return {"sum": row[0], "accounts": row[1], "ledger": listed}


if __name__ == "__main__":
    verb, address, *rest = sys.argv[1:]
    print(json.dumps(run(address, int(rest[0])) if verb == "run" else audit(address)))

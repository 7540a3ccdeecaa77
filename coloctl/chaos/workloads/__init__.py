"""Define the kinds of work that clients of a guest do, by name.

Each kind is a program of its own (``python -m coloctl.chaos.workloads.NAME``) that runs in the
client's namespace, writes its history to standard output (history.py), and ends when its standard
input does. With ``--read-back`` it prints one JSON value instead: what the guest holds now, asked
over new connections. Its shape, and what the operations mean, by kind:

=============== ========================================== ====================================
kind            operations                                 kept
=============== ========================================== ====================================
redis-appends   ``n``: a record                            ``{client: [n, ...]}``
redis-registers ``f``: write, read or cas, of ``key``;     ``{key: value}``
                ``value``: written, read, or ``[old,
                new]``; a cas that did not match is fail
redis-transfers ``f``: transfer, ``value``: ``{"from",     ``{"balances": {account: int},
                "to", "amount"}``; ``f``: read,            "done": {client: n}}``: ``done`` is
                ``value``: ``{account: balance}``          written by the transfer itself
tcp-stream      ``n``: a chunk, ok when its echo is right; null
                a wrong byte is fail, ``n`` -1, "wrong
                byte at POSITION"
http            ``n``: a GET, ``value``: ``[status,        null
                boot id]``
udp-sequence    ``n``: a datagram, ok when echoed, info    null
                when not; ``f``: duplicate for a second
                echo
disk-writer     ``n``: a block written with fsync,         ``{client: {n: checksum}}``, read
                ``value``: its checksum                    with the guest's caches dropped
=============== ========================================== ====================================

Every client notes ``opened ID`` once and ``closed ID`` at its end (``n`` -1, info); anything else
that happens to its connection is a fail with ``n`` -1. Clients of UDP open nothing. ID is redis's
own number of the connection, elsewhere the client's port. A block that the guest's disk refuses is
info with the disk's error; its client goes on. A datagram is given up only when its client ends.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.lab import layout

if TYPE_CHECKING:  # a lab's imports would cost each client a second of its start
    from coloctl.lab.network import Lab


@dataclass(frozen=True)
class WorkloadKind:
    """One kind of work; the program of the same name does it."""

    doc: str
    params: type[Params]
    #: The checks that understand its history.
    checks: Sequence[str]
    services: bool = True  #: the guest must have been started with ``services``


#: Between two records of one client, milliseconds: a load, but not a flood.
PAUSE_MS = 2


class AppendsParams(Params):
    """Records are appended with a pause after each; with ``idle_s``, in bursts of ``burst_s``.
    The connections are opened one by one, over ``arrive_s`` in all.
    """

    pause_ms: float = Field(default=PAUSE_MS, ge=0)
    burst_s: float = Field(default=0.0, ge=0)
    idle_s: float = Field(default=0.0, ge=0)
    arrive_s: float = Field(default=0.0, ge=0)


class PacedParams(Params):
    """Keys of clients that do one thing after the other, with a pause between."""

    pause_ms: float = Field(default=50.0, ge=1)


class TransfersParams(PacedParams):
    """Accounts that hold so much each at first; every so many operations of a client are a read."""

    accounts: int = Field(default=8, ge=2)
    balance: int = Field(default=100, ge=0)
    read_every: int = Field(default=5, ge=0)


class RegistersParams(PacedParams):
    """Registers that all clients share. The rate bounds what a check has to search."""

    pause_ms: float = Field(default=150.0, ge=1)
    keys: int = Field(default=3, ge=1)


class StreamParams(PacedParams):
    """So many chunks are on their way at a time; together they fit into what a socket holds."""

    chunk_bytes: int = Field(default=1024, ge=1, le=4096)
    window: int = Field(default=2, ge=1, le=4)


class BlocksParams(PacedParams):
    """Blocks of that size, written one after the other."""

    pause_ms: float = Field(default=100.0, ge=1)
    block_bytes: int = Field(default=1024, ge=16, le=65536)


_CONNECTED = ("connections_survive", "outage_within")

WORKLOADS: Mapping[str, WorkloadKind] = {
    "redis-appends": WorkloadKind(
        "numbered records are appended to lists of redis, on the disk when acknowledged",
        AppendsParams,
        ("no_lost_acks", *_CONNECTED),
        services=False,
    ),
    "redis-transfers": WorkloadKind(
        "money moves between accounts of redis in transactions; now and then all are read",
        TransfersParams,
        ("bank_sum", *_CONNECTED),
        services=False,
    ),
    "redis-registers": WorkloadKind(
        "a few registers of redis are written, read, and compared and set",
        RegistersParams,
        ("linearizable", *_CONNECTED),
        services=False,
    ),
    "tcp-stream": WorkloadKind(
        "a stream both ways, every byte checked",
        StreamParams,
        ("stream_intact", *_CONNECTED),
    ),
    "http": WorkloadKind(
        "a web server is asked over connections that are kept alive",
        PacedParams,
        _CONNECTED,
    ),
    "udp-sequence": WorkloadKind(
        "numbered datagrams are echoed",
        PacedParams,
        ("outage_within",),
    ),
    "disk-writer": WorkloadKind(
        "the guest writes checksummed blocks to its disk, each synced before it is acknowledged",
        BlocksParams,
        ("no_lost_acks", *_CONNECTED),
    ),
}


def start_workload(lab: Lab, work: Workload) -> ClientProgram:
    """Start the clients of that workload in the lab."""
    who = [
        *(sys.executable, "-m", f"{__name__}.{work.kind.replace('-', '_')}"),
        *("--host", layout.GUEST),
        *("--clients", str(work.clients), "--first", str(work.numbered_from)),
        *("--params", work.params.model_dump_json()),
    ]
    return ClientProgram(lab, who)

"""Measure the pause of a checkpoint by the memory that the guest changed, plain and encrypted.

Called by `cli.verbs.bench` for `coloctl bench overhead --dirty`; takes pairs from `bench.stretches`
and calls `chaos.workloads.program` for the client. A plain and an encrypted pair are protected at
the same time. They take turns: in its turn a program changes so much of the pair's memory, while
the other pair idles. The order of the two is turned round with every round.

Invariant: a ratio compares pauses of one command, measured in turns of seconds, so that a change in
the machine meanwhile changes both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from coloctl.bench.document import head
from coloctl.bench.stretches import MeasuredPair, Row, Stretch, run_measured
from coloctl.chaos.run.testbed import Testbed, until
from coloctl.chaos.workloads import AppendsParams
from coloctl.chaos.workloads.memory_writer import MemoryParams, arguments
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.lab import layout, netns
from coloctl.lab.network import Lab
from coloctl.model.figures import quantile, summary

#: Between two records of a client, milliseconds: enough that the guest's frames are compared.
PAUSE_MS = 250.0
#: Rounds of the memory's writer before a stretch: its memory is there, and was sent once.
ROUNDS_BEFORE = 3
WRITER_WAIT_S = 60.0
#: Rounds that the writer pauses for in a checkpoint period; at least one has to fall into each.
PER_PERIOD = 4

Pauses = dict[tuple[int, bool], list[list[float]]]


@dataclass(frozen=True)
class DirtyPlan:
    """The memory that a checkpoint finds changed, for how long each, and how often all of it."""

    mib: tuple[int, ...]
    tls: tuple[bool, ...] = (False, True)
    rounds: int = 3
    seconds: float = 20.0
    delay_ms: int = 500
    clients: int = 4


def dirtied(
    where: Testbed, plan: DirtyPlan, ran: Callable[[Row], None] = lambda _row: None
) -> dict[str, Any]:
    """Measure all turns and return their document; ``ran`` receives each turn when it is over."""
    pairs: dict[bool, MeasuredPair] = {}
    rows: list[Row] = []
    pauses: Pauses = {}

    def begun(pair: MeasuredPair, tls: bool) -> None:
        pair.protect()
        pairs[tls] = pair
        others = [one for one in plan.tls if one not in pairs]
        if others:
            begin(others[0])
            return
        for number in range(plan.rounds):
            for mib, turn in turns(plan, number):
                row, found = _turn(pairs[turn], mib, plan)
                pauses.setdefault((mib, turn), []).append(found)
                rows.append({"round": number + 1, "dirty_mib": mib, "tls": turn, **row})
                ran(rows[-1])

    def begin(tls: bool) -> None:
        name = f"{where.name}-tls" if tls else where.name
        setting = replace(where, tls=tls, name=name, delay_ms=plan.delay_ms)
        clients = AppendsParams(pause_ms=PAUSE_MS)
        run_measured(setting, plan.clients, clients, partial(begun, tls=tls))

    begin(plan.tls[0])
    setting = {
        **where.to_json(),
        "delay_ms": plan.delay_ms,
        "seconds": plan.seconds,
        "clients": {"count": plan.clients, "pause_ms": PAUSE_MS},
        "tls": list(plan.tls),
        "dirty_mib": list(plan.mib),
        "rounds": plan.rounds,
    }
    return {**head("overhead-dirty", setting), "rows": rows, "ratios": ratios(pauses, plan.mib)}


def turns(plan: DirtyPlan, number: int) -> Iterator[tuple[int, bool]]:
    """Return the turns of a round: for each amount each pair, in the other order every time."""
    for at, mib in enumerate(plan.mib):
        order = plan.tls if (number + at) % 2 == 0 else plan.tls[::-1]
        yield from ((mib, tls) for tls in order)


def ratios(pauses: Mapping[tuple[int, bool], Sequence[Sequence[float]]], mib: Sequence[int]) -> Any:
    """Compare the encrypted pauses of each amount with the plain ones; empty without both kinds.

    The ratio is that of the medians over all rounds; ``low`` and ``high`` are the smallest and the
    largest ratio of the medians within one round.
    """
    found = []
    for one in mib:
        plain, encrypted = pauses.get((one, False), ()), pauses.get((one, True), ())
        each = [_ratio(b, a) for a, b in zip(plain, encrypted, strict=False)]
        known = [ratio for ratio in each if ratio is not None]
        whole = _ratio([*chain(*encrypted)], [*chain(*plain)])
        if whole is not None and known:
            shown = {"p50": whole, "low": min(known), "high": max(known)}
            found.append({"dirty_mib": one, **{key: round(n, 2) for key, n in shown.items()}})
    return found


def _ratio(encrypted: Sequence[float], plain: Sequence[float]) -> float | None:
    over, under = quantile(encrypted, 0.5), quantile(plain, 0.5)
    return over / under if over is not None and under else None


def _turn(pair: MeasuredPair, mib: int, plan: DirtyPlan) -> tuple[Row, list[float]]:
    """Change so much of the pair's memory for some seconds; return the row and the pauses."""
    lab = pair.environment.lab
    params = MemoryParams(mib=mib, pause_ms=plan.delay_ms / PER_PERIOD)
    writer = ClientProgram(lab, [sys.executable, *arguments(layout.GUEST, params)])
    try:
        until(
            lambda: writer.acknowledged() >= ROUNDS_BEFORE,
            WRITER_WAIT_S,
            "The guest's memory was not changed",
        )
        rounds, carried = writer.acknowledged(), _carried(lab)
        one = pair.stretch(plan.seconds)
        rounds, carried = writer.acknowledged() - rounds, _carried(lab) - carried
        writer.finish()
    finally:
        writer.kill()
    return row_of(one, rounds, carried), list(one.pauses_ms)


def row_of(one: Stretch, rounds: int, carried: int) -> Row:
    """Compute the row of a turn: pauses, and per checkpoint what was changed and what was sent."""
    checkpoints = len(one.pauses_ms)
    return {
        "checkpoint_pause_ms": summary(one.pauses_ms),
        "rounds_per_checkpoint": round(rounds / checkpoints, 2) if checkpoints else None,
        "wire_mib_per_checkpoint": (
            round(carried / 2**20 / checkpoints, 2) if checkpoints else None
        ),
    }


def _carried(lab: Lab) -> int:
    """Return the bytes that the replication link carried so far, both ways."""
    end = lab.link("replication").ends[0]

    def read() -> str:
        return Path("/proc/thread-self/net/dev").read_text()

    lines = netns.inside(end.namespace, read).splitlines()
    (own,) = (line for line in lines if line.split(":")[0].strip() == end.device)
    fields = own.split(":")[1].split()
    return int(fields[0]) + int(fields[8])  # proc(5): received bytes, and sent bytes

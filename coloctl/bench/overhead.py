"""Measure what protection costs the guest's clients, and what the supervisor costs.

Called by `cli.verbs.bench` for `coloctl bench overhead`, and by `bench.pace` for its figures; sets
up lab and pair with `chaos.run.testbed` and changes the delay through `control.acts`. One guest
serves one set of clients on the same connections throughout: first unprotected, then protected at
one checkpoint delay after the other, at last protected and idle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from coloctl.bench.cost import Meter, spent
from coloctl.bench.document import BENCH_SCHEMA
from coloctl.bench.faults import require_colo, until
from coloctl.chaos.run import testbed
from coloctl.chaos.run.figures import summary
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import PAUSE_MS, start_workload
from coloctl.chaos.workloads.history import Op, OpStatus, operations
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient

#: The delay at which the supervisor of an idle pair is measured: a pair file's default.
IDLE_DELAY_MS = 1000
#: After a change, what was begun before it is over, seconds.
SETTLE_S = 2.0


@dataclass(frozen=True)
class Load:
    """The delays to measure, and for how long each."""

    delays_ms: tuple[int, ...] = (200, 500, 1000, 5000)
    seconds: float = 20.0
    clients: int = 4


@dataclass(frozen=True)
class Watched:
    """A stretch of time: its ends (monotonic), the pauses in it, the supervisor's cost."""

    begin_s: float
    end_s: float
    pauses_ms: tuple[float, ...]
    supervisor: Mapping[str, Any]


Row = dict[str, Any]


def overhead(
    where: Testbed, load: Load, ran: Callable[[Row], None] = lambda _row: None
) -> dict[str, Any]:
    """Measure all stretches and return their document; ``ran`` receives each when it is over."""
    with ExitStack() as stack:
        lab = stack.enter_context(testbed.lab(where))
        folder = stack.enter_context(testbed.folder(where))
        client = stack.enter_context(testbed.pair(where, lab, folder))
        testbed.boot(where, client)
        clients = start_workload(
            lab, Workload(name="load", kind="redis-appends", clients=load.clients)
        )
        stack.callback(clients.kill)
        return _Bench(where, load, client, clients, ran).document()


class _Bench:
    def __init__(
        self,
        where: Testbed,
        load: Load,
        client: ControlClient,
        clients: ClientProgram,
        ran: Callable[[Row], None],
    ) -> None:
        self.where, self.load, self.client, self.clients = where, load, client, clients
        self.ran = ran
        self.rows: list[Row] = []

    def document(self) -> dict[str, Any]:
        """Measure every stretch and build the document."""
        until(self.client, lambda _: self.clients.acknowledged() >= 10 * self.load.clients)
        self._measure("unprotected", None)
        Acts(self.client).start(wait_s=testbed.PROTECT_DEADLINE_S)
        self.clients.read_back()  # a new connection: longer delays wait for one (docs/qemu.md)
        for delay_ms in self.load.delays_ms:
            self._set_delay(delay_ms)
            self._measure("protected", delay_ms)
        self.clients.finish()
        self._set_delay(IDLE_DELAY_MS)
        idle = watch(self.client, self.load.seconds)
        return {
            "schema": BENCH_SCHEMA,
            "bench": "overhead",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count()},
            "setting": {
                **self.where.to_json(),
                "seconds": self.load.seconds,
                "clients": {"count": self.load.clients, "pause_ms": PAUSE_MS},
            },
            "rows": self.rows,
            "idle": {"delay_ms": IDLE_DELAY_MS, "supervisor": idle.supervisor},
        }

    def _set_delay(self, delay_ms: int) -> None:
        Acts(self.client).set({"checkpoint-delay": delay_ms})
        until(self.client, lambda view: view.checkpoints.delay_ms == delay_ms)
        time.sleep(SETTLE_S)

    def _measure(self, what: str, delay_ms: int | None) -> None:
        stretch = watch(self.client, self.load.seconds)
        if delay_ms is not None:
            require_colo(Acts(self.client).view())
        row = {
            "protection": what,
            "delay_ms": delay_ms,
            **rates(list(self.clients.history), stretch.begin_s, stretch.end_s),
            **pauses(stretch.pauses_ms, stretch.end_s - stretch.begin_s),
            "supervisor": stretch.supervisor,
        }
        baseline = self.rows[0] if self.rows else row
        row["throughput_ratio"] = ratio(row, baseline)
        self.rows.append(row)
        self.ran(row)


def watch(client: ControlClient, seconds: float) -> Watched:
    """Watch the pair for ``seconds``; the pauses are of checkpoints that ended in that time."""
    for _ in client.events(0.05):
        pass  # what ended before
    meter = Meter.read(Acts(client).view().supervisor_pid)
    begin_s = time.monotonic()
    ended = [
        float(event.data["pause_ms"])
        for event in client.events(seconds)
        if event.name == "CHECKPOINT" and event.data["phase"] == "end"
    ]
    return Watched(begin_s, time.monotonic(), tuple(ended), spent(meter))


def rates(history: Sequence[Op], begin_s: float, end_s: float) -> Row:
    """Compute replies per second, and how long each request waited for its reply, in that time."""
    waited = [
        (one.ended.at_s - one.begun.at_s) * 1000
        for one in operations(history)
        if one.ended is not None
        and one.status is OpStatus.OK
        and begin_s <= one.ended.at_s <= end_s
    ]
    return {
        "replies_per_s": round(len(waited) / (end_s - begin_s), 1),
        "latency_ms": summary(waited),
    }


def pauses(pauses_ms: Sequence[float], seconds: float) -> Row:
    """Compute how long checkpoints held the guest, and their share of the time."""
    return {
        "checkpoint_pause_ms": summary(pauses_ms),
        "paused_percent": round(sum(pauses_ms) / 10 / seconds, 2),
    }


def ratio(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """Return replies per second as a share of those without protection; None if there were none."""
    if not baseline["replies_per_s"]:
        return None
    share: float = row["replies_per_s"] / baseline["replies_per_s"]
    return round(share, 3)

"""Measure clients that work in bursts, under a fixed checkpoint delay and an adaptive one.

Called by `cli.verbs.bench` for `coloctl bench pace`; sets up lab and pair with `chaos.run.testbed`
and sets the mode through `control.acts`. One guest serves one set of clients on the same
connections throughout. The two modes take turns, so that what changes in the machine meanwhile
changes both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from coloctl.bench.document import BENCH_SCHEMA
from coloctl.bench.faults import require_colo, until
from coloctl.bench.overhead import SETTLE_S, Row, pauses, rates
from coloctl.chaos.run import testbed
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import PAUSE_MS, AppendsParams, start_workload
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.model.figures import quantile
from coloctl.model.pair import Role

MODES = ("fixed", "adaptive")


@dataclass(frozen=True)
class Bursts:
    """The rhythm of the clients, and for how long each mode is measured."""

    seconds: float = 40.0
    rounds: int = 1
    clients: int = 4
    pause_ms: float = PAUSE_MS
    burst_s: float = 3.0
    idle_s: float = 7.0


@dataclass
class StretchCounts:
    """The checkpoints of a stretch, from events of the primary's QEMU and of the supervisor.

    The first checkpoint is left out: its period is not known, and it may have been taken because
    the mode was set.
    """

    delay_ms: int
    checkpoints: list[dict[str, float]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    _stopped_s: float | None = None
    _before_s: float | None = None

    def note(self, event: ControlEvent, primary: str) -> None:
        """Record what the event shows of a checkpoint, or of the delay."""
        data = event.data
        if event.name == "PACE_CHANGED":
            self.delay_ms = data["after_ms"]
            self.changes.append(dict(data))
        if event.name != "NODE_EVENT" or data["node"] != primary:
            return
        if data["event"] == "STOP":
            self._before_s, self._stopped_s = self._stopped_s, data["timestamp"]
        elif data["event"] == "RESUME" and self._stopped_s and self._before_s:
            self._resumed(data["timestamp"], self._stopped_s, self._before_s)

    def _resumed(self, at_s: float, stopped_s: float, before_s: float) -> None:
        self.checkpoints.append(
            {
                "delay_ms": self.delay_ms,
                "pause_ms": round((at_s - stopped_s) * 1000, 1),
                "period_ms": round((stopped_s - before_s) * 1000, 1),
            }
        )


def bursts(
    where: Testbed, load: Bursts, ran: Callable[[Row], None] = lambda _row: None
) -> dict[str, Any]:
    """Measure all stretches and return their document; ``ran`` receives each when it is over."""
    rows: list[Row] = []
    with ExitStack() as stack:
        lab = stack.enter_context(testbed.lab(where))
        folder = stack.enter_context(testbed.folder(where))
        client = stack.enter_context(testbed.pair(where, lab, folder))
        testbed.boot(where, client)
        rhythm = AppendsParams(pause_ms=load.pause_ms, burst_s=load.burst_s, idle_s=load.idle_s)
        work = Workload(name="load", kind="redis-appends", clients=load.clients, params=rhythm)
        clients = start_workload(lab, work)
        stack.callback(clients.kill)
        until(client, lambda _: clients.acknowledged() >= 10 * load.clients)
        Acts(client).start(wait_s=testbed.PROTECT_DEADLINE_S)
        clients.read_back()  # a new connection: longer delays wait for one (docs/qemu.md)
        for _ in range(load.rounds):
            for mode in MODES:
                rows.append(_stretch(client, clients, mode, load.seconds))
                ran(rows[-1])
        clients.finish()
    return {
        "schema": BENCH_SCHEMA,
        "bench": "pace",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count()},
        "setting": {
            **where.to_json(),
            "seconds": load.seconds,
            "clients": {"count": load.clients, "pause_ms": load.pause_ms},
            "burst_s": load.burst_s,
            "idle_s": load.idle_s,
        },
        "rows": rows,
    }


def _stretch(client: ControlClient, clients: ClientProgram, mode: str, seconds: float) -> Row:
    for _ in client.events(0.05):
        pass  # what happened before
    Acts(client).set({"checkpoint-mode": mode})
    view = Acts(client).view()
    primary = next(node.name for node in view.nodes.values() if node.role is Role.PRIMARY)
    seen = StretchCounts(view.checkpoints.delay_ms)
    for event in client.events(SETTLE_S):
        seen.note(event, primary)
    settled, begin_s = len(seen.checkpoints), time.monotonic()
    for event in client.events(seconds):
        seen.note(event, primary)
    end_s = time.monotonic()
    require_colo(Acts(client).view())
    counted = seen.checkpoints[settled:]
    return {
        "mode": mode,
        "checkpoints": len(counted),
        "delay_p50_ms": quantile((one["delay_ms"] for one in counted), 0.5),
        **rates(list(clients.history), begin_s, end_s),
        **pauses([one["pause_ms"] for one in counted], end_s - begin_s),
        "changes": seen.changes,
        "trace": seen.checkpoints,
    }

"""Load a protected pair for a long time without any fault: every failover is a false one.

Called by `cli.verbs.bench` for `coloctl bench soak`; sets up lab and pair with `chaos.run.testbed`
and checks what clients saw with `chaos.checks`.
"""

from __future__ import annotations

import os
import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from coloctl.bench.cost import Meter, spent
from coloctl.bench.document import BENCH_SCHEMA
from coloctl.bench.failover import until
from coloctl.chaos.checks import records, streams, verdict
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.silences import Replies
from coloctl.chaos.faults.burners import burners
from coloctl.chaos.run import testbed
from coloctl.chaos.run.figures import summary
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import AppendsParams, start_workload
from coloctl.chaos.workloads.history import Op
from coloctl.control.acts import QUERY_S, Acts
from coloctl.control.client import ControlClient, ControlEvent

_NEAR_MISS = re.compile(
    r'^coloctl_near_misses_total\{[^}]*path="([^"]*)"[^}]*\} (\S+)', re.MULTILINE
)
#: Fewer requests than elsewhere: a history of hours must fit into memory.
SOAK_PAUSE_MS = 20.0
#: How often the progress of the soak is reported, seconds.
TELL_S = 30.0


@dataclass(frozen=True)
class Weather:
    """The length of a soak, and the load against which it runs."""

    minutes: float = 20.0
    burners: int = 2
    clients: int = 4


@dataclass
class SoakCounts:
    """Failovers and checkpoint pauses, from the supervisor's events."""

    false_failovers: list[str] = field(default_factory=list)
    pauses_ms: list[float] = field(default_factory=list)

    def note(self, event: ControlEvent) -> bool:
        """Record an event; return whether the pair has just left COLO."""
        if event.name == "CHECKPOINT" and event.data["phase"] == "end":
            self.pauses_ms.append(float(event.data["pause_ms"]))
        left = event.name == "STATE_CHANGED" and event.data["before"] == "colo"
        if left:
            self.false_failovers.append(str(event.data["reason"]))
        return left


Tell = Callable[[float, SoakCounts], None]


def soak(
    where: Testbed, weather: Weather, tell: Tell = lambda _minutes, _seen: None
) -> dict[str, Any]:
    """Run the soak and return its document; ``tell`` receives now and then how many minutes are
    over.

    A pair that failed over is protected again and soaks on. Raises the error that keeps it from
    that.
    """
    with ExitStack() as stack:
        lab = stack.enter_context(testbed.lab(where))
        folder = stack.enter_context(testbed.folder(where))
        address = free_address()
        client = stack.enter_context(testbed.pair(where, lab, folder, address))
        testbed.boot(where, client)
        load = Workload(
            name="load",
            kind="redis-appends",
            clients=weather.clients,
            params=AppendsParams(pause_ms=SOAK_PAUSE_MS),
        )
        clients = start_workload(lab, load)
        stack.callback(clients.kill)
        until(client, lambda _: clients.acknowledged() >= 10 * weather.clients)
        Acts(client).start(wait_s=testbed.PROTECT_DEADLINE_S)
        meter = Meter.read(Acts(client).view().supervisor_pid)
        before, began_s = near_misses(address), time.monotonic()
        with burners(weather.burners):
            seen = _weather(client, began_s + 60 * weather.minutes, tell)
            cost, view = spent(meter), Acts(client).view()
            doubts = near_misses(address) - before
        history = clients.finish()
        middle_s = began_s + (time.monotonic() - began_s) / 2
        verdicts = [
            records.all_kept(history, clients.read_back(), middle_s),
            streams.all_connected(history, weather.clients),
        ]
    return {
        **_document(where, weather, seen, history, verdicts),
        "protection": str(view.protection),
        "near_misses": dict(doubts),
        "supervisor": cost,
    }


def free_address() -> str:
    """Find an address of this machine alone at which no process listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def near_misses(address: str) -> Counter[str]:
    """Count how often each monitoring path came near its limit, from the supervisor's metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=QUERY_S) as answer:
        text = answer.read().decode()
    found = _NEAR_MISS.findall(text)
    return Counter({path: int(float(count)) for path, count in found if float(count)})


def _weather(client: ControlClient, until_s: float, tell: Tell) -> SoakCounts:
    seen, began_s = SoakCounts(), time.monotonic()
    while (left_s := until_s - time.monotonic()) > 0:
        for event in client.events(min(TELL_S, left_s)):
            if seen.note(event):
                break
        if seen.false_failovers:
            _protected_again(client)
        tell((time.monotonic() - began_s) / 60, seen)
    return seen


def _protected_again(client: ControlClient) -> None:
    """Wait until the pair is in COLO, as it was before its failover."""
    until(client, lambda view: view.protection in ("colo", "unprotected"))
    if not Acts(client).view().protected:
        Acts(client).start(wait_s=testbed.PROTECT_DEADLINE_S)


def _document(
    where: Testbed, weather: Weather, seen: SoakCounts, history: list[Op], verdicts: list[Verdict]
) -> dict[str, Any]:
    checks: list[Mapping[str, Any]] = [
        {"check": v.check, "verdict": v.validity, "because": v.because} for v in verdicts
    ]
    return {
        "schema": BENCH_SCHEMA,
        "bench": "soak",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count()},
        "setting": {
            **where.to_json(),
            "minutes": weather.minutes,
            "burners": weather.burners,
            "clients": {"count": weather.clients, "pause_ms": SOAK_PAUSE_MS},
        },
        "verdict": "invalid" if seen.false_failovers else str(verdict.worst(verdicts)),
        "false_failovers": seen.false_failovers,
        "checkpoints": len(seen.pauses_ms),
        "checkpoint_pause_ms": summary(seen.pauses_ms),
        "acknowledged": sum(map(len, records.acknowledged(history).values())),
        "longest_gap_ms": Replies({"": history}).longest_ms(0.0, time.monotonic()),
        "checks": checks,
    }

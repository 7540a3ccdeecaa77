"""Load a protected pair for a long time without any fault: every failover is a false one.

Called by `cli.verbs.bench` for `coloctl bench soak`; its run is a scenario without faults that
`chaos.run.runner` makes, and its figures are read from `chaos.evidence.chronicle`.
"""

from __future__ import annotations

import math
import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coloctl.bench.cost import Meter, spent
from coloctl.bench.document import checks, head, losses
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.faults.burners import burners
from coloctl.chaos.run import runner
from coloctl.chaos.run.environment import Environment
from coloctl.chaos.run.runner import Run, RunMeasurement
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import Scenario, SteadyState, Workload
from coloctl.chaos.workloads import AppendsParams
from coloctl.control.acts import QUERY_WAIT_S
from coloctl.model.figures import summary

_NEAR_MISS = re.compile(
    r'^coloctl_near_misses_total\{[^}]*path="([^"]*)"[^}]*\} (\S+)', re.MULTILINE
)
#: Fewer requests than elsewhere: a history of hours must fit into memory.
SOAK_PAUSE_MS = 20.0
#: How often the progress of the soak is reported, seconds.
REPORT_PERIOD_S = 30.0


@dataclass(frozen=True)
class SoakPlan:
    """The length of a soak, and the load against which it runs."""

    minutes: float = 20.0
    burners: int = 2
    clients: int = 4

    def to_json(self) -> dict[str, Any]:
        """Return the part of the document that names the plan."""
        clients = {"count": self.clients, "pause_ms": SOAK_PAUSE_MS}
        return {"minutes": self.minutes, "burners": self.burners, "clients": clients}


def scenario_of(plan: SoakPlan) -> Scenario:
    """Build the scenario of a soak; a pair that failed over is protected again and soaks on."""
    params = AppendsParams(pause_ms=SOAK_PAUSE_MS)
    return Scenario(
        name="bench-soak",
        title="A protected pair under load, without any fault",
        why="A failover that no fault caused costs the clients an outage.",
        steady_state=SteadyState(checkpoints_min=0, acknowledged_min=10 * plan.clients),
        workloads=(Workload(kind="redis-appends", clients=plan.clients, params=params),),
        pair={"policy": {"auto_reprotect": True}},
        expect={"no_lost_acks": Params(), "connections_survive": Params()},
        settle_s=0.0,
    )


Tell = Callable[[float, Chronicle], None]


class Soak(RunMeasurement):
    """Burns processor time for the length of the soak, and measures the supervisor meanwhile."""

    def __init__(self, plan: SoakPlan, tell: Tell) -> None:
        self.metrics = free_address()
        self.begin_s = 0.0
        self.cost: dict[str, Any] = {}
        self.doubts: Counter[str] = Counter()
        self._plan, self._tell = plan, tell

    def act(self, environment: Environment) -> None:
        """Wait for the end of the soak; tell every `REPORT_PERIOD_S` how it goes."""
        meter = Meter.read(environment.listener.view().supervisor_pid)
        before, self.begin_s = near_misses(self.metrics), time.monotonic()
        until_s = self.begin_s + 60 * self._plan.minutes
        with burners(self._plan.burners):
            while (left_s := until_s - time.monotonic()) > 0:
                time.sleep(min(REPORT_PERIOD_S, left_s))
                minutes = (time.monotonic() - self.begin_s) / 60
                self._tell(minutes, Chronicle(events=tuple(environment.listener.heard)))
            self.cost = spent(meter)
            self.doubts = near_misses(self.metrics) - before


def soak(
    where: Testbed, plan: SoakPlan, tell: Tell = lambda _minutes, _seen: None
) -> dict[str, Any]:
    """Run the soak and return its document; ``tell`` receives now and then how many minutes are
    over, and the history of the pair so far.

    Raises the error that ended it.
    """
    measured = Soak(plan, tell)
    run = Run.of(scenario_of(plan), 1, where)
    result = runner.make(run, measure=measured, forgiving=False)
    chronicle, view = result.evidence.chronicle, result.evidence.view
    false = [left.reason for left in chronicle.left_protection]
    pauses = [one.ms for one in chronicle.pauses if one.ended_s >= measured.begin_s]
    lost = losses(result)
    return {
        **head("soak", {**where.to_json(), **plan.to_json()}),
        "verdict": "invalid" if false else str(result.validity),
        "false_failovers": false,
        "checkpoints": len(pauses),
        "checkpoint_pause_ms": summary(pauses),
        "acknowledged": lost["acknowledged"],
        "longest_gap_ms": chronicle.replies.longest_ms(-math.inf, math.inf),
        "checks": checks(result.verdicts),
        "protection": str(view.protection) if view else "unknown",
        "near_misses": dict(measured.doubts),
        "supervisor": measured.cost,
    }


def free_address() -> str:
    """Find an address of this machine alone at which no process listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def near_misses(address: str) -> Counter[str]:
    """Count how often each monitoring path came near its limit, from the supervisor's metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=QUERY_WAIT_S) as answer:
        text = answer.read().decode()
    found = _NEAR_MISS.findall(text)
    return Counter({path: int(float(count)) for path, count in found if float(count)})

"""Measure stretches of load on one pair: what protection costs, and how its pace follows clients.

Called by `cli.verbs.bench` for `coloctl bench overhead` and `coloctl bench pace`, and by
`bench.dirtied`; each bench is a scenario without faults that `chaos.run.runner` makes, and measures
while it runs. One guest serves one set of clients on the same connections throughout. ``overhead``
measures unprotected clients first, then protected ones at one checkpoint delay after the other, at
last a pair that is protected and idle. ``pace`` measures clients that work in bursts, at a fixed
delay and an adaptive one. The two modes take turns, so that what changes in the machine meanwhile
changes both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from coloctl.bench.cost import Meter, spent
from coloctl.bench.document import head
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.evidence.listener import EventListener
from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.chaos.run import runner
from coloctl.chaos.run.environment import Environment
from coloctl.chaos.run.runner import Run, RunMeasurement
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import Scenario, SteadyState, Workload
from coloctl.chaos.workloads import PAUSE_MS, AppendsParams
from coloctl.chaos.workloads.history import Op, OpStatus, operations
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import KNOB_WAIT_S
from coloctl.errors import NotProtected
from coloctl.model import pairevent
from coloctl.model.figures import quantile, summary
from coloctl.model.pairevent import NodeEvent, PaceChanged
from coloctl.model.view import PairView

#: The delay at which the supervisor of an idle pair is measured: a pair file's default.
IDLE_DELAY_MS = 1000
#: After a change, what was begun before it is over, seconds.
SETTLE_S = 2.0

Row = dict[str, Any]
Ran = Callable[[Row], None]


@dataclass(frozen=True)
class OverheadPlan:
    """The delays to measure, and for how long each."""

    delays_ms: tuple[int, ...] = (200, 500, 1000, 5000)
    seconds: float = 20.0
    clients: int = 4
    tls: tuple[bool, ...] = (False,)  #: a pair for each, plain or encrypted, one after the other


@dataclass(frozen=True)
class PacePlan:
    """The rhythm of the clients, and for how long each mode is measured."""

    seconds: float = 40.0
    rounds: int = 1
    clients: int = 4
    pause_ms: float = PAUSE_MS
    burst_s: float = 3.0
    idle_s: float = 7.0


def overhead(where: Testbed, plan: OverheadPlan, ran: Ran = lambda _row: None) -> dict[str, Any]:
    """Measure all stretches and return their document; ``ran`` receives each when it is over."""
    rows: list[Row] = []
    idle: dict[str, Any] = {"delay_ms": IDLE_DELAY_MS}
    baseline: dict[bool, Row] = {}

    def measure(pair: MeasuredPair, delay_ms: int | None, tls: bool) -> None:
        if delay_ms is not None:
            pair.set("checkpoint-delay", delay_ms)
        one = pair.stretch(plan.seconds)
        row = {
            "protection": "unprotected" if delay_ms is None else "protected",
            "tls": tls,
            "delay_ms": delay_ms,
            **rates(pair.clients.history, one),
            **pauses(one.pauses_ms, one),
            "supervisor": one.supervisor,
        }
        rows.append({**row, "throughput_ratio": ratio(row, baseline.setdefault(tls, row))})
        ran(rows[-1])

    def act(pair: MeasuredPair, tls: bool) -> None:
        measure(pair, None, tls)
        pair.protect()
        for delay_ms in plan.delays_ms:
            measure(pair, delay_ms, tls)
        pair.clients.finish()
        pair.set("checkpoint-delay", IDLE_DELAY_MS)
        idle["supervisor"] = pair.stretch(plan.seconds).supervisor

    clients = {"count": plan.clients, "pause_ms": PAUSE_MS}
    setting = {**where.to_json(), "seconds": plan.seconds, "clients": clients}
    for tls in plan.tls:
        run_measured(replace(where, tls=tls), plan.clients, AppendsParams(), partial(act, tls=tls))
    return {**head("overhead", {**setting, "tls": list(plan.tls)}), "rows": rows, "idle": idle}


def pace(where: Testbed, plan: PacePlan, ran: Ran = lambda _row: None) -> dict[str, Any]:
    """Measure all stretches and return their document; ``ran`` receives each when it is over."""
    rows: list[Row] = []

    def measure(pair: MeasuredPair, mode: str) -> None:
        place = len(pair.listener.heard)
        view = pair.set("checkpoint-mode", mode)
        one = pair.stretch(plan.seconds)
        events = [event for event in pair.listener.heard[place:] if event.at_s <= one.end_s]
        trace = list(checkpoints(events, view))
        counted = [checkpoint for at_s, checkpoint in trace if at_s > one.begin_s]
        rows.append(
            {
                "mode": mode,
                "checkpoints": len(counted),
                "delay_p50_ms": quantile((each["delay_ms"] for each in counted), 0.5),
                **rates(pair.clients.history, one),
                **pauses([each["pause_ms"] for each in counted], one),
                "changes": [change(each) for each in events if each.name == PaceChanged.NAME],
                "trace": [checkpoint for _, checkpoint in trace],
            }
        )
        ran(rows[-1])

    def act(pair: MeasuredPair) -> None:
        pair.protect()
        for _ in range(plan.rounds):
            measure(pair, "fixed")
            measure(pair, "adaptive")
        pair.clients.finish()

    rhythm = {"burst_s": plan.burst_s, "idle_s": plan.idle_s}
    clients = {"count": plan.clients, "pause_ms": plan.pause_ms}
    setting = {**where.to_json(), "seconds": plan.seconds, "clients": clients, **rhythm}
    run_measured(where, plan.clients, AppendsParams(pause_ms=plan.pause_ms, **rhythm), act)
    return {**head("pace", setting), "rows": rows}


def scenario_of(clients: int, params: AppendsParams) -> Scenario:
    """Build the scenario of a bench, which breaks nothing: the bench protects the pair itself."""
    return Scenario(
        name="bench-stretches",
        title="Clients are served without protection and with it",
        why="Protection costs the guest's clients time.",
        steady_state=SteadyState(protection="unprotected", acknowledged_min=10 * clients),
        workloads=(Workload(kind="redis-appends", clients=clients, params=params),),
        pair={"policy": {"auto_reprotect": False}},
        expect={"connections_survive": Params()},
        settle_s=0.0,
    )


def run_measured(
    where: Testbed, clients: int, params: AppendsParams, act: Callable[[MeasuredPair], None]
) -> None:
    """Make one run in which ``act`` measures; raises the error that ended it."""
    run = Run.of(scenario_of(clients, params), 1, where)
    runner.make(run, measure=_Measurement(act), forgiving=False)


@dataclass
class _Measurement(RunMeasurement):
    """Measures stretches in the middle of a run."""

    measure: Callable[[MeasuredPair], None]

    def act(self, environment: Environment) -> None:
        """See `RunMeasurement.act`."""
        ((_, clients),) = environment.works.values()
        self.measure(MeasuredPair(environment, clients, environment.listener))


@dataclass(frozen=True)
class Stretch:
    """A stretch of time: its ends (monotonic), the pauses in it, the supervisor's cost."""

    begin_s: float
    end_s: float
    pauses_ms: Sequence[float] = ()
    supervisor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredPair:
    """The pair of a run, its clients and its events."""

    environment: Environment
    clients: ClientProgram
    listener: EventListener

    def protect(self) -> None:
        """Bring the pair into COLO, and connect: longer delays wait for that (docs/qemu.md)."""
        self.environment.protect()
        self.clients.read_back()

    def set(self, name: str, value: Any) -> PairView:
        """Change a setting over a connection of its own, and wait until its effect is over.

        Returns the pair as it was just after the change.
        """
        self.listener.ask("pair-set", KNOB_WAIT_S, settings={name: value})
        view = self.listener.view()
        time.sleep(SETTLE_S)
        return view

    def stretch(self, seconds: float) -> Stretch:
        """Watch the pair for ``seconds``; the pauses are of checkpoints that ended in that time.

        Raises `NotProtected` when the protection has ended meanwhile.
        """
        before = self.listener.view()
        meter, begin_s = Meter.read(before.supervisor_pid or 0), time.monotonic()
        time.sleep(seconds)
        end_s, cost = time.monotonic(), spent(meter)
        after = self.listener.view()
        if after.protection != before.protection:
            raise NotProtected(f"The pair is {after.protection}: {after.reason}")
        ended = Chronicle(events=tuple(self.listener.heard)).pauses
        pauses_ms = [one.ms for one in ended if begin_s < one.ended_s <= end_s]
        return Stretch(begin_s, end_s, pauses_ms, cost)


def checkpoints(
    events: Iterable[ObservedEvent], view: PairView
) -> Iterator[tuple[float, dict[str, float]]]:
    """Return the end and the figures of each checkpoint, by the clock of the primary's QEMU.

    ``view`` is the pair before all of them. The first checkpoint is left out: its period is not
    known, and it may have been taken because the mode was set.
    """
    primary, delay_ms = view.primary(), view.checkpoints.delay_ms
    stopped_s = before_s = None
    for event in events:
        match pairevent.read(event.name, event.data):
            case PaceChanged(after_ms=after_ms):
                delay_ms = after_ms
            case NodeEvent() as said if primary is None or said.node != primary.name:
                continue
            case NodeEvent(event="STOP", timestamp=at_s):
                before_s, stopped_s = stopped_s, at_s
            case NodeEvent(event="RESUME", timestamp=at_s) if stopped_s and before_s:
                yield (
                    event.at_s,
                    {
                        "delay_ms": delay_ms,
                        "pause_ms": round((at_s - stopped_s) * 1000, 1),
                        "period_ms": round((stopped_s - before_s) * 1000, 1),
                    },
                )


def change(event: ObservedEvent) -> dict[str, Any]:
    """Build a change of the delay; its keys have dashes, as those of the event once had."""
    return {name.replace("_", "-"): value for name, value in event.data.items()}


def rates(history: Iterable[Op], within: Stretch) -> Row:
    """Compute replies per second, and how long each request waited for its reply, in that time."""
    waited = [
        (one.ended.at_s - one.begun.at_s) * 1000
        for one in operations(list(history))
        if one.ended is not None
        and one.status is OpStatus.OK
        and within.begin_s <= one.ended.at_s <= within.end_s
    ]
    return {
        "replies_per_s": round(len(waited) / (within.end_s - within.begin_s), 1),
        "latency_ms": summary(waited),
    }


def pauses(pauses_ms: Sequence[float], within: Stretch) -> Row:
    """Compute how long checkpoints held the guest, and their share of the time."""
    return {
        "checkpoint_pause_ms": summary(pauses_ms),
        "paused_percent": round(sum(pauses_ms) / 10 / (within.end_s - within.begin_s), 2),
    }


def ratio(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """Return replies per second as a share of those without protection; None if there were none."""
    if not baseline["replies_per_s"]:
        return None
    share: float = row["replies_per_s"] / baseline["replies_per_s"]
    return round(share, 3)

"""Count and time what the supervisor of one pair reports, as OpenMetrics families.

Called by `control.daemon.export`, which passes events and views, and by `control.daemon.http`,
which serves them; the values are those of `model.pairevent` and `model.view`.

Invariant: the folding methods are called by the supervisor's loop alone and take microseconds;
`registry` may be collected by any other thread meanwhile. Shared values are replaced as a whole
(views, exposure) or guarded inside prometheus_client (counters, histograms). Every label has a
closed set of values, so that no series grows with time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector

from coloctl import __version__
from coloctl.clock import CLOCK, Clock
from coloctl.metrics.snapshot import Exposure, Sight, ViewCollector
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import NODES
from coloctl.model.pairevent import (
    CheckpointPhase,
    FailedOver,
    NodeDead,
    PairEvent,
    StateChanged,
    VerificationOver,
)
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import TIMELINE_STEPS, FailoverStep, Timeline
from coloctl.model.verified import VerifyOutcome
from coloctl.model.view import PairView

#: Probes of `ha.heartbeat`.
PROBES = ("rescue", "command", "link")
#: Everything whose silence has a limit (`ha.monitoring_path`): the probes, the agent of a node's
#: machine, what the kernel says of QEMU's own connections, and the primary's checkpoints.
SUSPECTS = (*PROBES, "agent", "data", "held", "overdue")
OTHER = "other"
CAUSES = (
    "operator",
    *(str(one) for one in Diagnosis if one not in (Diagnosis.HEALTHY, Diagnosis.UNKNOWN)),
    OTHER,
)
#: Steps of a failover in their order; ``first-packet`` comes when the guest speaks.
PHASES = (*TIMELINE_STEPS, OTHER)

#: Out-of-band answers took 11 ms at worst on two busy cores (docs/qemu.md); 120 ms make a suspect.
BEAT_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
#: Around the pauses of docs/qemu.md, and up to those of a guest that writes much.
PAUSE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
FAILOVER_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Fold events, beats, observations, failovers and views of ``pair`` into `registry`."""

    def __init__(self, pair: str, clock: Clock = CLOCK) -> None:
        self.pair = pair
        self.clock = clock
        self.sight: Sight | None = None  #: what was published last
        self.exposure = Exposure()
        self.registry = CollectorRegistry()
        self._near: Set[tuple[str, str]] = frozenset()
        self._make_counters()
        self._make_histograms()
        self.registry.register(ViewCollector(pair, clock, lambda: (self.sight, self.exposure)))
        ProcessCollector(registry=self.registry)
        build = Info("coloctl_build", "What runs the supervisor.", registry=self.registry)
        build.info({"version": __version__, "pair": pair})

    def _make_counters(self) -> None:
        def counter(name: str, says: str, label: str = "", values: Iterable[str] = ()) -> Counter:
            labels = ("pair", label) if label else ("pair",)
            made = Counter(name, says, labels, registry=self.registry)
            for value in values if label else ("",):
                made.labels(self.pair, *filter(None, [value]))  # a series that begins at zero
            return made

        self._checkpoints = counter(
            "coloctl_checkpoints", "Checkpoints completed."
        ).labels(self.pair)  # fmt: skip
        self._failovers = counter(
            "coloctl_failovers", "Failovers that ended with a running guest, by cause.",
            "cause", CAUSES,
        )  # fmt: skip
        self._failed = counter(
            "coloctl_failovers_failed", "Failovers without a proof of death or a running guest."
        ).labels(self.pair)
        self._losses = counter(
            "coloctl_protection_losses", "How often the pair left COLO."
        ).labels(self.pair)  # fmt: skip
        self._deaths = counter(
            "coloctl_node_deaths", "QEMU processes that ended without being asked.", "node", NODES
        )
        self._verifications = counter(
            "coloctl_verifications",
            "Comparisons of both nodes' copies that are over, by outcome.",
            "outcome", [str(outcome) for outcome in VerifyOutcome],
        )  # fmt: skip
        self._near_misses = counter(
            "coloctl_near_misses",
            "Silences that took half of what makes a suspect, or more, and ended.",
            "path", SUSPECTS,
        )  # fmt: skip

    def _make_histograms(self) -> None:
        def histogram(name: str, says: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                name, says, ("pair", *labels), unit="seconds",
                buckets=buckets, registry=self.registry,
            )  # fmt: skip

        self._pauses = histogram(
            "coloctl_checkpoint_pause_seconds", "How long a checkpoint held the guest.",
            PAUSE_BUCKETS,
        ).labels(self.pair)  # fmt: skip
        beats = histogram(
            "coloctl_heartbeat_latency_seconds", "From a probe to its answer.",
            BEAT_BUCKETS, "node", "path",
        )  # fmt: skip
        self._beats: Mapping[tuple[str, str], Callable[[float], None]] = {
            (node, path): beats.labels(self.pair, node, path).observe
            for node in NODES
            for path in PROBES
        }
        self._failover_s = histogram(
            "coloctl_failover_seconds",
            "From the fault, or where that is unknown its detection, to the running survivor.",
            FAILOVER_BUCKETS,
        ).labels(self.pair)
        phases = histogram(
            "coloctl_failover_phase_seconds", "What each phase of a failover took.",
            FAILOVER_BUCKETS, "phase",
        )  # fmt: skip
        self._phases = {phase: phases.labels(self.pair, phase) for phase in PHASES}

    def event(self, event: PairEvent) -> None:
        """Count an event that clients of the control socket get, if it is one that counts."""
        match event:
            case CheckpointPhase(phase="end", pause_ms=pause_ms):
                self._checkpoints.inc()
                if pause_ms is not None:
                    self._pauses.observe(pause_ms / 1000)
            case NodeDead(node=node):
                self._deaths.labels(self.pair, node).inc()
            case VerificationOver(outcome=outcome):
                self._verifications.labels(self.pair, outcome).inc()
            case FailedOver(timeline=timeline):
                self.failover(timeline)
            case StateChanged(before=before, fact=fact):
                if before is Protection.COLO:
                    self._losses.inc()
                if fact is Fact.FAILOVER_FAILED:
                    self._failed.inc()

    def beat(self, node: str, path: str, seconds: float) -> None:
        """Note that a probe of ``node`` was answered after ``seconds``."""
        observe = self._beats.get((node, path))
        if observe is not None:
            observe(seconds)

    def doubts(self, near: Set[tuple[str, str]], *, protected: bool) -> None:
        """Count each silence that came near its limit and ended while the pair is still protected.

        ``near`` has those that are near their limits now, by node and monitoring path.
        """
        if near == self._near:
            return
        if protected:
            for _, path in self._near - near:
                self._near_misses.labels(self.pair, path).inc()
        self._near = frozenset(near)

    def failover(self, timeline: Timeline) -> None:
        """Count the failover of that timeline, by cause and by phase."""
        cause, steps = timeline.cause, timeline.steps
        self._failovers.labels(self.pair, cause if cause in CAUSES else OTHER).inc()
        before = 0.0
        for step, at_ms in sorted(steps.items(), key=lambda item: item[1]):
            spoke = step == FailoverStep.FIRST_PACKET  # beside the others, not one after another
            since = steps.get(FailoverStep.RUNNING, 0.0) if spoke else before
            phase = self._phases.get(step, self._phases[OTHER])
            phase.observe(max(0.0, at_ms - since) / 1000)
            if not spoke:
                before = at_ms
        if FailoverStep.RUNNING in steps:
            unnoticed_ms = abs(timeline.fault_ms or 0.0)
            self._failover_s.observe((unnoticed_ms + steps[FailoverStep.RUNNING]) / 1000)

    def view(self, view: PairView) -> None:
        """Set the view that a scrape shows from now on."""
        now = self.clock.now()
        exposed, before = view.exposed_s is not None, self.exposure
        if exposed and before.since_s is None:
            self.exposure = Exposure(before.over_s, now)
        elif not exposed and before.since_s is not None:
            self.exposure = Exposure(before.until(now))
        self.sight = Sight(view, now)

    def age_s(self) -> float | None:
        """Return how long ago the pair was published; None before the first time."""
        sight = self.sight
        return None if sight is None else max(0.0, self.clock.now() - sight.at_s)

"""Make metric families of the last published view of a pair, at each scrape.

Made by `metrics`, whose thread that scrapes reads it; the view is `model.view`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from coloctl.clock import Clock
from coloctl.model.encryption import PLAIN
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.model.view import Degradation, Fencing, PairView, Presence


@dataclass(frozen=True)
class Sight:
    """The pair as it was published at one moment of the metrics' clock."""

    view: PairView
    at_s: float


@dataclass(frozen=True)
class Exposure:
    """Time without protection that this supervisor has watched: what is over, and what is not."""

    over_s: float = 0.0
    since_s: float | None = None

    def until(self, now: float) -> float:
        """Return all of it, in seconds."""
        return self.over_s + (0.0 if self.since_s is None else now - self.since_s)


class ViewCollector(Collector):
    """The content of the last published view, read by the thread that scrapes."""

    def __init__(
        self, pair: str, clock: Clock, look: Callable[[], tuple[Sight | None, Exposure]]
    ) -> None:
        self._pair = pair
        self._clock = clock
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also while there is no view: then without samples."""
        sight, watched = self._look()
        yield from self._states(sight)
        yield from self._numbers(sight)
        exposure = CounterMetricFamily(
            "coloctl_unprotected_seconds",
            "How long a guest ran without protection while this supervisor watched.",
            labels=["pair"], unit="seconds",
        )  # fmt: skip
        exposure.add_metric([self._pair], watched.until(self._clock.now()))
        yield exposure

    def _states(self, sight: Sight | None) -> Iterator[Metric]:
        pair = self._pair
        protection = StateSetMetricFamily(
            "coloctl_protection", "State of the pair's protection.", labels=["pair"]
        )
        diagnosis = StateSetMetricFamily(
            "coloctl_diagnosis", "What is the matter with the pair.", labels=["pair"]
        )
        by_node = ["pair", "node"]
        role = StateSetMetricFamily("coloctl_node_role", "Role of a node.", labels=by_node)
        presence = StateSetMetricFamily(
            "coloctl_node_presence", "Whether a node's QEMU is there.", labels=by_node
        )
        fencing = StateSetMetricFamily(
            "coloctl_node_fencing", "How far the fencing of a node is.", labels=by_node
        )
        impaired = StateSetMetricFamily(
            "coloctl_node_impairment", "What is wrong with a node although it serves.",
            labels=by_node,
        )  # fmt: skip
        node_info = InfoMetricFamily(
            "coloctl_node", "A node's QEMU and the user as which it runs.", labels=by_node
        )
        if sight is not None:
            view = sight.view
            protection.add_metric([pair], _one_of(Protection, view.protection))
            diagnosis.add_metric([pair], _one_of(Diagnosis, view.diagnosis))
            for name, node in view.nodes.items():
                role.add_metric([pair, name], _one_of(Role, node.role))
                presence.add_metric([pair, name], _one_of(Presence, node.presence))
                fencing.add_metric([pair, name], _one_of(Fencing, node.fencing))
                impaired.add_metric([pair, name], _one_of(Degradation, *node.impairments))
                if node.presence is Presence.ALIVE:
                    facts = {"user": node.user, "version": node.qemu_version}
                    node_info.add_metric([pair, name], facts)
        yield from (protection, diagnosis, role, presence, fencing, impaired, node_info)

    def _numbers(self, sight: Sight | None) -> Iterator[Metric]:
        now = self._clock.now()
        for gauge in GAUGES:
            family = GaugeMetricFamily(gauge.name, gauge.says, labels=["pair"], unit=gauge.unit)
            value = None if sight is None else gauge.of(sight.view, max(0.0, now - sight.at_s))
            if value is not None:
                family.add_metric([self._pair], value)
            yield family


@dataclass(frozen=True)
class Gauge:
    """A number of a view; ``of`` gets the view and its age in seconds, None is unknown."""

    name: str
    says: str
    unit: str
    of: Callable[[PairView, float], float | None]


def _exposed(view: PairView, age_s: float) -> float:
    return 0.0 if view.exposed_s is None else view.exposed_s + age_s


def _copied(view: PairView, member: str) -> float:
    if view.progress is None or view.progress.unit != "bytes":
        return 0.0
    return float(getattr(view.progress, member) or 0)


def _rate(view: PairView) -> float:
    progress = view.progress
    return 0.0 if progress is None or progress.bytes_per_s is None else progress.bytes_per_s


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


GAUGES: tuple[Gauge, ...] = (
    Gauge("coloctl_generation", "Promotions of this pair so far.", "", lambda v, _: v.generation),
    Gauge(
        "coloctl_paused",
        "1 while automatic failover is paused.",
        "",
        lambda v, _: float(v.paused),
    ),
    Gauge(
        "coloctl_encrypted",
        "1 where every wire between the nodes is encrypted, 0 where none is; none on one machine.",
        "",
        lambda v, _: float(v.encryption != PLAIN) if v.encryption else None,
    ),
    Gauge(
        "coloctl_stale_code",
        "1 while the secondary may run stale code: TCG without the fresh-code plugin.",
        "",
        lambda v, _: float(bool(v.stale_code)),
    ),
    Gauge(
        "coloctl_exposure_seconds",
        "How long the guest has been running without protection; 0 when it is protected.",
        "seconds",
        _exposed,
    ),
    Gauge(
        "coloctl_checkpoint_period_seconds",
        "Time between the last two checkpoints.",
        "seconds",
        lambda v, _: _seconds(v.checkpoints.last_period_ms),
    ),
    Gauge(
        "coloctl_checkpoint_delay_seconds",
        "Time between checkpoints that QEMU was given.",
        "seconds",
        lambda v, _: _seconds(v.checkpoints.delay_ms),
    ),
    Gauge(
        "coloctl_copied_bytes",
        "Bytes of disks or memory that the act under way has copied.",
        "bytes",
        lambda v, _: _copied(v, "done"),
    ),
    Gauge(
        "coloctl_to_copy_bytes",
        "Bytes of disks or memory that the act under way copies in all.",
        "bytes",
        lambda v, _: _copied(v, "total"),
    ),
    Gauge(
        "coloctl_copy_rate_bytes_per_second",
        "How fast the act under way copied disks or memory in the last 10 s; 0 without one.",
        "bytes_per_second",
        lambda v, _: _rate(v),
    ),
    Gauge(
        "coloctl_different_bytes",
        "Bytes in which the nodes' disks differed at the last comparison; 0 without one.",
        "bytes",
        lambda v, _: float(v.verified.different) if v.verified else 0.0,
    ),
    Gauge(
        "coloctl_different_pages",
        "Pages of memory that differed at the last comparison; 0 without one.",
        "pages",
        lambda v, _: float(v.verified.pages.different) if v.verified and v.verified.pages else 0.0,
    ),
    Gauge(
        "coloctl_view_age_seconds",
        "How long ago the supervisor last looked at the pair.",
        "seconds",
        lambda _, age_s: age_s,
    ),
)


def _one_of(states: type[StrEnum], *held: str) -> dict[str, bool]:
    """Build a state set: every state, those in ``held`` true."""
    return {str(state): state in held for state in states}

"""Events, beats, observations and views become numbers that a scraper understands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import generate_latest, parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from support.fakeclock import FakeClock
from support.views import LOST, PROTECTED, RESYNC

from coloctl.metrics import CAUSES, OTHER, PHASES, PROBES, SUSPECTS, Metrics
from coloctl.model.encryption import ENCRYPTED, PLAIN
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import NODES, Role
from coloctl.model.pairevent import (
    CheckpointPhase,
    FailedOver,
    NodeDead,
    PauseChanged,
    ProgressMade,
    StateChanged,
)
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import Timeline
from coloctl.model.view import ActProgress

pytestmark = pytest.mark.unit

TIMELINE = Timeline(
    survivor="b",
    lost="a",
    role_before=Role.SECONDARY,
    steps={
        "detected": 0.0,
        "fenced": 2.0,
        "arbitrated": 5.0,
        "yanked": 6.0,
        "promoted": 9.0,
        "running": 10.0,
        "first-packet": 14.0,
        "cleared": 30.0,
        "verified": 31.0,
    },
    generation=3,
    cause="primary-dead",
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(100.0)


@pytest.fixture
def metrics(clock: FakeClock) -> Metrics:
    return Metrics("web", clock)


def number(metrics: Metrics, name: str, **labels: str) -> float | None:
    labelled = labels if name.startswith("process_") else {"pair": "web", **labels}
    return metrics.registry.get_sample_value(name, labelled)


def changed(before: str, after: str, fact: Fact = Fact.NODE_LOST) -> StateChanged:
    return StateChanged(
        before=Protection(before), fact=fact, after=Protection(after), reason="Because."
    )


def test_checkpoints_are_counted_at_their_end_and_timed(metrics: Metrics) -> None:
    for pause in (4.0, 30.0):
        metrics.event(CheckpointPhase(node="a", phase="begin", count=1))
        metrics.event(CheckpointPhase(node="a", phase="end", count=1, pause_ms=pause))
    assert number(metrics, "coloctl_checkpoints_total") == 2
    assert number(metrics, "coloctl_checkpoint_pause_seconds_sum") == pytest.approx(0.034)
    assert number(metrics, "coloctl_checkpoint_pause_seconds_bucket", le="0.005") == 1
    assert number(metrics, "coloctl_checkpoint_pause_seconds_bucket", le="0.05") == 2


def test_losses_deaths_and_failed_failovers_are_counted(metrics: Metrics) -> None:
    metrics.event(NodeDead(node="a", how="killed by signal 9"))
    metrics.event(changed("colo", "failover"))
    metrics.event(changed("failover", "failed", Fact.FAILOVER_FAILED))
    assert number(metrics, "coloctl_node_deaths_total", node="a") == 1
    assert number(metrics, "coloctl_node_deaths_total", node="b") == 0
    assert number(metrics, "coloctl_protection_losses_total") == 1
    assert number(metrics, "coloctl_failovers_failed_total") == 1


def test_events_that_are_not_counted_change_nothing(metrics: Metrics) -> None:
    before = generate_latest(metrics.registry)
    metrics.event(ProgressMade(act="start", step="mirror", done=1, total=2))
    metrics.event(PauseChanged(paused=True))
    counted = [line for line in before.splitlines() if line.startswith(b"coloctl_")]
    after = generate_latest(metrics.registry).splitlines()
    assert [line for line in after if line.startswith(b"coloctl_")] == counted


def test_each_beat_is_counted_by_node_and_road(metrics: Metrics) -> None:
    for node in NODES:
        for path in PROBES:
            metrics.beat(node, path, 0.0003)
    metrics.beat("a", "carrier-pigeon", 5.0)
    metrics.beat("a", "rescue", 0.03)
    name = "coloctl_heartbeat_latency_seconds"
    assert number(metrics, f"{name}_count", node="a", path="rescue") == 2
    assert number(metrics, f"{name}_bucket", node="a", path="rescue", le="0.0005") == 1
    assert number(metrics, f"{name}_count", node="b", path="link") == 1
    assert number(metrics, f"{name}_count", node="a", path="carrier-pigeon") is None


def test_the_phases_of_a_failover_last_from_the_one_before(metrics: Metrics) -> None:
    metrics.event(FailedOver(timeline=TIMELINE))
    assert number(metrics, "coloctl_failovers_total", cause="primary-dead") == 1
    expected = {"fenced": 2, "arbitrated": 3, "running": 1, "first-packet": 4, "cleared": 20}
    for phase, ms in expected.items():
        took = number(metrics, "coloctl_failover_phase_seconds_sum", phase=phase)
        assert took == pytest.approx(ms / 1000), phase
    assert number(metrics, "coloctl_failover_phase_seconds_count", phase="merged") == 0
    assert number(metrics, "coloctl_failover_seconds_sum") == pytest.approx(0.010)


def test_what_passed_before_the_detection_belongs_to_the_failover(metrics: Metrics) -> None:
    metrics.failover(replace(TIMELINE, fault_ms=-120.0))
    assert number(metrics, "coloctl_failover_seconds_sum") == pytest.approx(0.130)


def test_causes_and_phases_that_nobody_knows_make_no_new_series(metrics: Metrics) -> None:
    before = len(generate_latest(metrics.registry).splitlines())
    for index in range(50):
        steps = {f"step-{index}": 1.0}
        metrics.failover(replace(TIMELINE, cause=f"cause-{index}", steps=steps))
    assert number(metrics, "coloctl_failovers_total", cause=OTHER) == 50
    assert number(metrics, "coloctl_failover_phase_seconds_count", phase=OTHER) == 50
    assert len(generate_latest(metrics.registry).splitlines()) == before


# -- near misses


@pytest.mark.parametrize("path", SUSPECTS)
def test_a_silence_that_came_near_its_limit_and_ended_counts_once(
    metrics: Metrics, path: str
) -> None:
    near: set[tuple[str, str]]
    for near in (set(), {("a", path)}, {("a", path)}, set(), set()):
        metrics.doubts(near, protected=True)
    for other in SUSPECTS:
        assert number(metrics, "coloctl_near_misses_total", path=other) == (other == path)


def test_a_silence_that_ended_in_a_failover_was_no_near_miss(metrics: Metrics) -> None:
    metrics.doubts({("a", "rescue")}, protected=True)
    metrics.doubts(set(), protected=False)
    metrics.doubts(set(), protected=True)
    assert number(metrics, "coloctl_near_misses_total", path="rescue") == 0


# -- views


def states(metrics: Metrics, name: str, **labels: str) -> set[str]:
    """The states of a state set that are true."""
    families = {family.name: family for family in metrics.registry.collect()}
    return {
        sample.labels[name]
        for sample in families[name].samples
        if sample.value == 1 and labels.items() <= sample.labels.items()
    }


def test_the_last_view_is_what_a_scrape_shows(metrics: Metrics, clock: FakeClock) -> None:
    assert states(metrics, "coloctl_protection") == set()
    assert metrics.age_s() is None
    metrics.view(PROTECTED)
    clock.advance(2.5)
    assert states(metrics, "coloctl_protection") == {"colo"}
    assert states(metrics, "coloctl_node_role", node="a") == {"primary"}
    assert states(metrics, "coloctl_node_role", node="b") == {"secondary"}
    assert states(metrics, "coloctl_node_fencing", node="a") == {"clear"}
    assert number(metrics, "coloctl_generation") == 2
    assert number(metrics, "coloctl_checkpoint_period_seconds") == 1.003
    assert number(metrics, "coloctl_checkpoint_delay_seconds") == 1.0
    assert number(metrics, "coloctl_exposure_seconds") == 0
    assert number(metrics, "coloctl_view_age_seconds") == metrics.age_s() == 2.5
    metrics.view(LOST)
    assert states(metrics, "coloctl_protection") == {"unprotected"}
    assert states(metrics, "coloctl_node_presence", node="a") == {"dead"}
    assert states(metrics, "coloctl_node_fencing", node="a") == {"fenced"}
    assert number(metrics, "coloctl_checkpoint_period_seconds") is not None


def test_encryption_is_a_number_where_there_are_two_machines(metrics: Metrics) -> None:
    for sentence, value in ((PLAIN, 0), (ENCRYPTED, 1), (f"{ENCRYPTED} Renew it.", 1)):
        metrics.view(replace(PROTECTED, encryption=sentence))
        assert number(metrics, "coloctl_encrypted") == value
    metrics.view(replace(PROTECTED, encryption=""))
    assert number(metrics, "coloctl_encrypted") is None


def test_what_is_the_matter_and_a_pause_are_told(metrics: Metrics) -> None:
    metrics.view(PROTECTED)
    assert states(metrics, "coloctl_diagnosis") == {"healthy"}
    assert number(metrics, "coloctl_paused") == 0
    metrics.view(replace(PROTECTED, paused=True, diagnosis=Diagnosis.LINK_BROKEN))
    assert states(metrics, "coloctl_diagnosis") == {"link-broken"}
    assert number(metrics, "coloctl_paused") == 1


def test_exposure_is_the_view_s_and_grows_between_views(metrics: Metrics, clock: FakeClock) -> None:
    metrics.view(LOST)
    clock.advance(3)
    assert number(metrics, "coloctl_exposure_seconds") == 15.0


def test_unprotected_time_only_grows_and_is_that_which_was_watched(
    metrics: Metrics, clock: FakeClock
) -> None:
    seen = []
    for view, seconds in ((LOST, 3), (RESYNC, 2), (PROTECTED, 10), (LOST, 4), (PROTECTED, 1)):
        metrics.view(view)
        clock.advance(seconds)
        seen.append(number(metrics, "coloctl_unprotected_seconds_total"))
    assert seen == [3, 5, 5, 9, 9]


def test_a_copy_under_way_shows_its_bytes(metrics: Metrics) -> None:
    metrics.view(RESYNC)
    assert number(metrics, "coloctl_copied_bytes") == 512
    assert number(metrics, "coloctl_to_copy_bytes") == 2048
    assert number(metrics, "coloctl_copy_rate_bytes_per_second") == 0
    fast = ActProgress("start", "mirror", 512, 2048, "bytes", bytes_per_s=98.5e6)
    metrics.view(replace(RESYNC, progress=fast))
    assert number(metrics, "coloctl_copy_rate_bytes_per_second") == 98.5e6
    metrics.view(replace(RESYNC, progress=ActProgress("start", "attach")))
    assert number(metrics, "coloctl_to_copy_bytes") == 0


def test_the_supervisor_s_own_cost_is_told(metrics: Metrics) -> None:
    assert (number(metrics, "process_resident_memory_bytes") or 0) > 2**20
    assert number(metrics, "process_cpu_seconds_total") is not None


# -- what goes over the wire


def busy(metrics: Metrics) -> Metrics:
    metrics.view(LOST)
    metrics.event(CheckpointPhase(node="a", phase="end", count=1, pause_ms=9.0))
    metrics.beat("a", "rescue", 0.0003)
    metrics.failover(TIMELINE)
    return metrics


def families(metrics: Metrics) -> Iterator[Metric]:
    text = openmetrics.generate_latest(metrics.registry).decode()
    yield from openmetrics_parser.text_string_to_metric_families(text)


def test_openmetrics_and_the_classic_text_can_be_read_back(metrics: Metrics) -> None:
    written = {family.name: family for family in families(busy(metrics))}
    classic = generate_latest(metrics.registry).decode()
    names = {family.name for family in parser.text_string_to_metric_families(classic)}
    assert names >= {
        "coloctl_checkpoints",
        "coloctl_protection",
        "coloctl_checkpoint_pause_seconds",
    }
    assert written["coloctl_protection"].type == "stateset"
    assert written["coloctl_checkpoint_pause_seconds"].unit == "seconds"
    assert written["coloctl_unprotected_seconds"].type == "counter"


def test_names_follow_the_rules_of_openmetrics(metrics: Metrics) -> None:
    for family in families(busy(metrics)):
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_total", "_info", "_bucket", "_count", "_sum"))
        if not family.name.startswith("process_"):
            assert family.name.startswith("coloctl_")
            assert all(sample.labels["pair"] == "web" for sample in family.samples)
            for unit in ("seconds", "bytes"):
                assert family.name.endswith(f"_{unit}") == (family.unit == unit), family.name


def test_series_that_count_begin_at_zero(metrics: Metrics) -> None:
    """A scraper that sees a counter appear at 1 does not know that it grew."""
    for cause in CAUSES:
        assert number(metrics, "coloctl_failovers_total", cause=cause) == 0
    for path in SUSPECTS:
        assert number(metrics, "coloctl_near_misses_total", path=path) == 0
    for phase in PHASES:
        assert number(metrics, "coloctl_failover_phase_seconds_count", phase=phase) == 0


def test_a_scrape_beside_a_busy_supervisor_reads_whole_numbers(metrics: Metrics) -> None:
    metrics.view(PROTECTED)
    stop, failures = threading.Event(), []

    def scrape() -> None:
        try:
            while not stop.is_set():
                list(families(metrics))
        except Exception as error:
            failures.append(error)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        for index in range(5000):
            metrics.beat("a", "rescue", 0.0003)
            metrics.view(LOST if index % 2 else PROTECTED)
            metrics.failover(TIMELINE)
    finally:
        stop.set()
        scraper.join()
    assert not failures
    assert number(metrics, "coloctl_failovers_total", cause="primary-dead") == 5000

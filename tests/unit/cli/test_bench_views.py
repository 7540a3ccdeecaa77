"""What a bench shows: every figure of its document, however wide the terminal is."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from coloctl.bench import failover
from coloctl.bench.dirtied import row_of
from coloctl.bench.stretches import Stretch
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.cli.views import bench as bench_views

pytestmark = pytest.mark.unit

MEASURED = st.floats(min_value=0, max_value=1e6, allow_nan=False)


def drawn(what: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def run(number: int, verdict: str, **changes: Any) -> dict[str, Any]:
    return {
        "run": number,
        "verdict": verdict,
        "because": [],
        "phases_ms": {"detected": 4.0, "running": 17.5 + number},
        "outage_ms": 120.0 * number,
        "first_reply_ms": 110.0,
        "acknowledged": 500,
        **dict.fromkeys(("lost", "broken", "stray_frames"), 0),
        "double_primary": False,
        **changes,
    }


def document(*runs: dict[str, Any]) -> dict[str, Any]:
    return {"runs": runs, "summary": failover.summarised(runs)}


def test_a_failover_shows_phases_outage_and_losses() -> None:
    text = drawn(bench_views.failover(document(run(1, "valid"), run(2, "invalid", lost=3))))
    assert "18.5 ms" in text
    assert "19.5 ms" in text
    assert "240.0 ms" in text
    assert "█" in text
    assert "3 lost" in text
    assert "1 valid, 1 invalid, 0 void" in text


def test_a_bench_without_a_result_can_be_shown() -> None:
    void = run(1, "void", phases_ms={}, outage_ms=None, because=["Nobody noticed."])
    assert "1 void" in drawn(bench_views.failover(document(void)))
    assert "Nobody noticed." in bench_views.run_line(void, 1).plain
    assert drawn(bench_views.failover(document()))


def test_a_run_is_one_line() -> None:
    line = bench_views.run_line(run(7, "valid"), 30).plain
    assert line.startswith("run  7/30")
    assert "24.5 ms" in line


def test_overhead_shows_each_stretch() -> None:
    figures = {"n": 3, "p50": 1.5, "p99": 9.5, "max": 9.5}
    row = {
        "protection": "protected", "tls": True, "delay_ms": 200,
        "replies_per_s": 400.0, "latency_ms": figures,
        "checkpoint_pause_ms": figures, "paused_percent": 3.25, "throughput_ratio": 0.5,
        "supervisor": {"cpu_percent": 2.0, "rss_mib": 40.0},
    }  # fmt: skip
    nothing = dict.fromkeys(("p50", "p99", "max"))
    alone = {**row, "delay_ms": None, "checkpoint_pause_ms": {"n": 0, **nothing}}
    idle = {"delay_ms": 1000, "supervisor": {"cpu_percent": 1.25, "rss_mib": 41.0}}
    for width in (80, 140):
        text = drawn(bench_views.overhead({"rows": [alone, row], "idle": idle}), width)
        assert "alone" in text
        assert "200 ms" in text
        assert "1.5 / 9.5 ms" in text
        assert "41 MiB" in text
        assert ("█" in text) == (width == 140)


def test_each_turn_and_each_ratio_is_shown() -> None:
    one = {"round": 1, "dirty_mib": 16, **row_of(Stretch(0.0, 2.0, [10.0, 30.0]), 7, 3 << 20)}
    void = {"round": 1, "dirty_mib": 1, "tls": False, **row_of(Stretch(0.0, 2.0), 0, 0)}
    rows = [{**one, "tls": False}, {**one, "tls": True}, void]
    whole = {"dirty_mib": 16, "p50": 1.5, "low": 1.25, "high": 1.75}
    text = drawn(bench_views.dirtied({"rows": rows, "ratios": [whole]}), 80)
    assert "16 MiB, TLS" in text
    assert "1.5 MiB" in text
    assert "16 MiB changed: encrypted 1.50 times the plain pause, 1.25 to 1.75" in text
    assert "encrypted: pause p50 10.0 ms of 2" in bench_views.turn_line(rows[1])


def test_a_soak_says_what_it_saw() -> None:
    checkpoint = {"phase": "end", "pause_ms": 12.5, "count": 1, "node": "a", "delay_ms": 200}
    left = {"before": "colo", "fact": "link-broken", "after": "failover", "reason": "So it is."}
    back = {**left, "before": "migrating", "after": "colo"}
    events = [("CHECKPOINT", checkpoint), ("CHECKPOINT", checkpoint)]
    events += [("STATE_CHANGED", left), ("STATE_CHANGED", back)]
    seen = Chronicle(events=[ObservedEvent(1.0 + n, *one) for n, one in enumerate(events)])
    assert bench_views.soak_line(1.0, 20, seen) == (
        "  1.0 of 20 min: 2 checkpoints, 1 false failovers"
    )
    text = drawn(bench_views.facts({"schema": 1, "near_misses": {}, "false_failovers": ["x"]}))
    assert "near misses" in text
    assert "none" in text


@given(st.lists(MEASURED, max_size=200), st.integers(1, 20))
def test_a_histogram_holds_every_value(values: list[float], most: int) -> None:
    bins = bench_views.histogram(values, most)
    assert len(bins) <= most
    assert sum(one.count for one in bins) == len(values)
    for one, following in pairwise(bins):
        assert one.high == pytest.approx(following.low)
    if values:
        assert bins[0].low <= min(values)
        assert bins[-1].high > max(values) or bins[-1].high == pytest.approx(max(values))
        assert bins[0].count
        assert bins[-1].count

"""Draw what benches measured, as tables and small plots; pure.

Called by `cli.verbs.bench` with documents of `bench/`; a soak that still runs is drawn from its
`chaos.evidence.chronicle`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.cli.views.render import Widest, bar, milliseconds, plain_table
from coloctl.model.timeline import FailoverStep

Document = Mapping[str, Any]

#: What each phase means: the supervisor's steps, and what the bench itself saw at the switch.
MEANINGS: Mapping[str, str] = {
    **{step: step.meaning for step in FailoverStep},
    "first-frame": "its first frame reached the switch",
}
_STYLE = {"valid": "green", "invalid": "bold red", "void": "yellow"}


def run_line(run: Document, runs: int) -> Text:
    """Draw one run in a line: its verdict, when the guest ran again, the clients' outage."""
    line = Text.assemble(
        (f"run {run['run']:>{len(str(runs))}}/{runs}  ", "dim"),
        (f"{run['verdict']:7}", _STYLE[run["verdict"]]),
    )
    if run["phases_ms"]:
        running = run["phases_ms"].get(FailoverStep.RUNNING)
        line.append(f"  running after {milliseconds(running):>9}")
        line.append(f"  outage {milliseconds(run['outage_ms']):>9}")
    for because in run["because"]:
        line.append(f"  {because}", "dim")
    return line


def circle_line(turn: Document, circles: int) -> Text:
    """Draw one circle in a line: the fault, when the guest ran, how long it ran alone."""
    return Text.assemble(
        (f"circle {turn['circle']:>{len(str(circles))}}/{circles}  ", "dim"),
        f"{turn['blow']:10}  runs on node {turn['survivor']} ",
        f"after {milliseconds(turn['running_ms']):>9}",
        f"  protected again after {turn['exposed_s']:.1f} s",
    )


def circles(document: Document) -> RenderableType:
    """Draw the times of all circles, what clients noticed, and the verdicts."""
    table = plain_table("")
    for name in ("p50", "p99", "MAX"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for key, words in (
        ("running_ms", "from the fault to a guest that runs"),
        ("outage_ms", "the longest silence of any client at a fault"),
        ("join_gap_ms", "the longest silence while a new secondary joins"),
        ("exposed_s", "from a guest that runs to a pair in COLO"),
    ):
        unit = "s" if key.endswith("_s") else "ms"
        cells = [f"{document[key][name]:.1f} {unit}" for name in ("p50", "p99", "max")]
        table.add_row(key.rsplit("_", 1)[0].replace("_", " "), *cells, words)
    checks = [
        Text.assemble((one["verdict"], _STYLE.get(one["verdict"], "yellow")), "  ",
                      one["check"], ": ", one["because"])
        for one in document["checks"]
    ]  # fmt: skip
    return Group(table, Text(), *checks)


def failover(document: Document) -> RenderableType:
    """Draw the phases, the clients' outage with a plot of it, and what was lost."""
    summary = document["summary"]
    table = plain_table("SINCE THE FAULT")
    for name in ("p50", "p90", "MAX"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for step, figures in summary["phases_ms"].items():
        table.add_row(step, *_quantiles(figures), MEANINGS.get(step, ""))
    felt = (
        ("first reply", "first_reply_ms", "the first client is answered"),
        ("outage", "outage_ms", "the longest silence of any client"),
    )
    for name, key, words in felt:
        table.add_row(Text(name, "bold"), *_quantiles(summary[key]), words)
    outages = [run["outage_ms"] for run in document["runs"] if run["outage_ms"] is not None]
    return Group(table, *_plot("clients' outage", outages), "", *_losses(summary))


def _quantiles(figures: Document) -> list[str]:
    return [milliseconds(figures[key]) for key in ("p50", "p90", "max")]


def _plot(title: str, values: Sequence[float]) -> list[RenderableType]:
    """Draw how often each value was measured; empty for one value or none."""
    if len(values) < 2:
        return []
    bins = histogram(values)
    most = max(one.count for one in bins)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    for one in bins:
        drawn = bar(0, one.count, most) if one.count else ""
        label = f"{one.low:g} to {one.high:g} ms"
        grid.add_row(Text(label, "dim"), Text(drawn, "cyan"), str(one.count or ""))
    return ["", Text(title, "dim"), grid]


def _losses(summary: Document) -> list[RenderableType]:
    counts = Text(
        f"{summary['runs']} runs: {summary['valid']} valid, {summary['invalid']} invalid, "
        f"{summary['void']} void"
    )
    lost = summary["lost"] + summary["broken"] + summary["double_primaries"]
    losses = Text(
        f"{summary['acknowledged']} records acknowledged, {summary['lost']} lost; "
        f"{summary['broken']} connections broken; {summary['double_primaries']} double primaries",
        "bold red" if lost else "green",
    )
    return [counts, losses]


def row_line(row: Document) -> str:
    """Draw one stretch of `bench overhead` in a line."""
    delay = row["delay_ms"]
    what = "unprotected" if delay is None else f"protected, {delay} ms"
    if row.get("tls"):
        what += ", encrypted"
    return f"{what}: {row['replies_per_s']:.0f} replies/s"


def overhead(document: Document) -> RenderableType:
    """Draw one row per stretch, its throughput as a bar, and the supervisor of an idle pair."""
    rows = document["rows"]
    idle = document["idle"]
    cost = idle["supervisor"]
    return Group(
        Widest(_stretches(rows, drawn=True), _stretches(rows, drawn=False)),
        "",
        f"CPU is the supervisor's share of one core. While an idle pair is protected at "
        f"{idle['delay_ms']} ms that is {cost['cpu_percent']:.1f} %,"
        f" with {cost['rss_mib']:.0f} MiB resident.",
    )


def _stretches(rows: Sequence[Document], *, drawn: bool) -> Table:
    """Draw one row per stretch; with ``drawn``, its throughput as a bar too."""
    table = plain_table("DELAY")
    for name in ("REPLIES/s", "RATIO", "LATENCY p50/p99", "PAUSE p50/p99", "PAUSED", "CPU"):
        table.add_column(name, justify="right", no_wrap=True)
    if drawn:
        table.add_column("", no_wrap=True)
    most = max((row["replies_per_s"] for row in rows), default=0.0)
    for row in rows:
        ratio, delay_ms = row["throughput_ratio"], row["delay_ms"]
        cells = (
            ("alone" if delay_ms is None else f"{delay_ms} ms") + (", TLS" if row["tls"] else ""),
            f"{row['replies_per_s']:.0f}",
            "-" if ratio is None else f"{ratio:.2f}",
            _pair_of(row["latency_ms"]),
            _pair_of(row["checkpoint_pause_ms"]),
            f"{row['paused_percent']:.1f} %",
            f"{row['supervisor']['cpu_percent']:.1f} %",
        )
        whole = Text(bar(0, row["replies_per_s"], most, 12), "cyan")
        table.add_row(*cells, *((whole,) if drawn else ()))
    return table


def _pair_of(figures: Document) -> str:
    if figures["p50"] is None:
        return "-"
    return f"{figures['p50']:.1f} / {milliseconds(figures['p99'])}"


def turn_line(row: Document) -> str:
    """Draw one turn of `bench overhead --dirty` in a line."""
    pause, kind = row["checkpoint_pause_ms"], "encrypted" if row["tls"] else "plain"
    return (
        f"round {row['round']}, {row['dirty_mib']} MiB, {kind}: pause p50 "
        f"{milliseconds(pause['p50'])} of {pause['n']} checkpoints"
    )


def dirtied(document: Document) -> RenderableType:
    """Draw one row per turn, and for each amount the encrypted pause against the plain one."""
    table = plain_table("CHANGED")
    for name in ("ROUND", "PAUSE p50/p99", "CHECKPOINTS", "ON THE WIRE"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(document["rows"], key=lambda row: (row["dirty_mib"], row["round"])):
        sent = row["wire_mib_per_checkpoint"]
        table.add_row(
            f"{row['dirty_mib']} MiB" + (", TLS" if row["tls"] else ""),
            str(row["round"]),
            _pair_of(row["checkpoint_pause_ms"]),
            str(row["checkpoint_pause_ms"]["n"]),
            "-" if sent is None else f"{sent:.1f} MiB",
        )
    lines = [
        f"{one['dirty_mib']} MiB changed: encrypted {one['p50']:.2f} times the plain pause, "
        f"{one['low']:.2f} to {one['high']:.2f} in one round."
        for one in document["ratios"]
    ]
    return Group(table, *([""] if lines else []), *lines)


def pace_line(row: Document) -> str:
    """Draw one stretch of `bench pace` in a line."""
    p99 = milliseconds(row["latency_ms"]["p99"])
    return f"{row['mode']}: {row['checkpoints']} checkpoints, latency p99 {p99}"


def pace(document: Document) -> RenderableType:
    """Draw one row per stretch, side by side, with how often adaptive mode changed the delay."""
    table = plain_table("DELAY")
    for name in ("CHECKPOINTS", "LATENCY p50/p99", "MAX", "REPLIES/s", "PAUSE p50/p99", "PAUSED",
                 "CHANGES"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for row in document["rows"]:
        delay = row["delay_p50_ms"]
        table.add_row(
            row["mode"] + ("" if delay is None else f" (p50 {milliseconds(delay, digits=0)})"),
            str(row["checkpoints"]),
            _pair_of(row["latency_ms"]),
            milliseconds(row["latency_ms"]["max"]),
            f"{row['replies_per_s']:.0f}",
            _pair_of(row["checkpoint_pause_ms"]),
            f"{row['paused_percent']:.1f} %",
            str(len(row["changes"])),
        )
    return table


def soak_line(minutes: float, of: float, seen: Chronicle) -> str:
    """Draw how far a soak is."""
    return (
        f"{minutes:5.1f} of {of:g} min: {len(seen.pauses)} checkpoints, "
        f"{len(seen.left_protection)} false failovers"
    )


def facts(document: Document) -> RenderableType:
    """Draw the results of a document, one per row, without the setting that was asked for."""
    grid = Table.grid(padding=(0, 3, 0, 0))
    for key, value in document.items():
        if key not in ("schema", "at", "setting", "machine"):
            grid.add_row(Text(key.replace("_", " "), "dim"), _fact(value))
    return grid


def _fact(value: object) -> str:
    """Return a value as one line; an empty one as `none`."""
    if isinstance(value, Mapping) and "check" in value:
        return f"{value['check']}: {value['because']}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_fact, value)) or "none"
    return str(value)


@dataclass(frozen=True)
class Bin:
    """The number of values from ``low`` (counted) to ``high`` (not counted)."""

    low: float
    high: float
    count: int


def histogram(values: Sequence[float], most: int = 12) -> list[Bin]:
    """Count values in equal bins with round borders: at most ``most``, none without values.

    The first bin begins at or below the least value, the last one holds the greatest.
    """
    if not values:
        return []
    low, high = min(values), max(values)
    width = _round_width((high - low) / most)
    first, last = math.floor(low / width), math.floor(high / width)
    while last - first + 1 > most:
        width = _round_width(width * 1.01)
        first, last = math.floor(low / width), math.floor(high / width)
    counts = [0] * (last - first + 1)
    for value in values:
        counts[math.floor(value / width) - first] += 1
    return [
        Bin((first + i) * width, (first + i + 1) * width, count) for i, count in enumerate(counts)
    ]


def _round_width(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is not below ``least``."""
    power = 1.0
    while True:
        for step in (1, 2, 5):
            if step * power >= least:
                return step * power
        power *= 10

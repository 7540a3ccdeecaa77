"""Compute what the template of the page shows of a run: figures, pictures, verdicts in order; pure.

Called by `chaos.report`; calls `chaos.report.chart` for the pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.report import chart
from coloctl.chaos.report.lanes import SHAPES
from coloctl.chaos.report.scale import duration
from coloctl.chaos.report.strips import KINDS
from coloctl.chaos.run.result import RunResult

SIGNS = {Validity.VALID: "✓", Validity.INVALID: "✗", Validity.UNKNOWN: "?"}
PROMISED = {
    Validity.VALID: "Every check that the scenario asks for holds.",
    Validity.INVALID: "A promise was broken.",
    Validity.UNKNOWN: "Too little happened.",
}
#: Lines of a counterexample, and rows of faults, that a page shows.
LINES_MAX, ROWS_MAX = 20, 200
_ORDER = {Validity.INVALID: 0, Validity.UNKNOWN: 1, Validity.VALID: 2}


def values(run: RunResult) -> dict[str, Any]:
    """Return what the template needs, by the names that it uses."""
    document = run.to_json()
    album = chart.Album.of(run.evidence, run.place)
    near = run.evidence.faults[: chart.NEAR_MAX]
    return {
        "run": run,
        "document": document,
        "figures": _figures(document),
        "whole": album.whole(),
        "near": [
            (f"{one.fault.name}: {one.fault.kind} {one.fault.target}", album.near(number))
            for number, one in enumerate(near)
        ],
        "verdicts": sorted(run.verdicts, key=lambda one: _ORDER[one.validity]),
        "signs": SIGNS,
        "promised": PROMISED,
        "kinds": KINDS,
        "shapes": SHAPES,
        "lines_max": LINES_MAX,
        "rows_max": ROWS_MAX,
    }


def _figures(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the name, the value and the explanation of each figure at the top."""
    works, faults = document["workloads"], document["faults"]
    pauses = document["checkpoint_pause_ms"]
    again = [
        (one["protected_again_s"] - one["struck_s"]) * 1000
        for one in faults
        if one["protected_again_s"] is not None
    ]
    opened = sum(one["connections"] for one in works)
    kept = opened - sum(one["broken"] for one in works)
    missed = sum(bool(one["missed"]) for one in faults)
    return [
        ("Acknowledged", f"{sum(one['acknowledged'] for one in works):,}",
         f"of {sum(one['sent'] for one in works):,} operations"),
        ("Connections kept", str(max(kept, 0)), f"of {opened} opened"),
        ("Faults injected", str(len(faults) - missed),
         f"{missed} missed" if missed else "as planned"),
        ("Longest outage", duration(_most(one["outage_ms"] for one in faults)),
         "any client, around a fault"),
        ("Protected again", duration(_most(again)), "at the latest, after a fault"),
        ("Checkpoint pause", duration(pauses["p50"]),
         f"median of {pauses['n']}; longest {duration(pauses['max'])}"),
    ]  # fmt: skip


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def seconds(value: float | None) -> str:
    """Format a moment for a table."""
    return "–" if value is None else f"{value:.3f} s"

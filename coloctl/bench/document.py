"""Build what the documents of all benches share: their head, their checks, the exit code.

Called by every module of `bench/`, by `cli.demo_run`, and by `cli.verbs.bench` for the exit code;
writes down the verdicts of `chaos.checks.verdict`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from coloctl.chaos.checks import records
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.chronicle import JOIN_AFTER_S, Chronicle
from coloctl.chaos.run.result import RunResult, workload

#: Version of every bench's document; grows with incompatible changes only.
BENCH_SCHEMA = 1


def head(bench: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Build the begin of a document: the bench, when and where it ran, and what was measured."""
    return {
        "schema": BENCH_SCHEMA,
        "bench": bench,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count()},
        "setting": dict(setting),
    }


def checks(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Build the part of a document that names the checks and their verdicts."""
    return [{"check": v.check, "verdict": v.validity, "because": v.because} for v in verdicts]


def losses(result: RunResult) -> dict[str, int]:
    """Count the acknowledged records of a run, those that were lost, and broken connections."""
    works = [work for work in result.evidence.works.values() if work.kept is not None]
    return {
        "acknowledged": sum(workload(work)["acknowledged"] for work in works),
        "lost": sum(len(records.lost(work.history, work.kept)) for work in works),
        "broken": sum(workload(work)["broken"] for work in works),
    }


def first_join_gap_ms(chronicle: Chronicle) -> float | None:
    """Measure the longest silence of any client while the pair was protected for the first time."""
    joins = [one.at_s for one in chronicle.states if one.after in ("resync", "migrating")]
    colo = [one.at_s for one in chronicle.states if one.after == "colo"]
    return (
        chronicle.replies.longest_ms(joins[0], colo[0] + JOIN_AFTER_S) if joins and colo else None
    )


def exit_code(verdicts: Iterable[str]) -> int:
    """Return 1 when a verdict is invalid, else 3 when one is not valid or there is none, else 0."""
    found = set(verdicts)
    return 1 if "invalid" in found else 0 if found == {"valid"} else 3

"""An invalid run is made as small as it stays invalid, and written down as a scenario."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import runs

from coloctl.chaos.checks.sides import Sides
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.run import shrink
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.runner import Run
from coloctl.chaos.scenario import file
from coloctl.chaos.scenario.values import Scenario, ScheduledFault, When, Workload
from coloctl.chaos.workloads import AppendsParams

APPENDS = Workload(kind="redis-appends", params=AppendsParams(pause_ms=5.0))
STORY = Scenario(
    name="s",
    title="Much goes wrong",
    why="Because.",
    seed=7,
    workloads=(APPENDS,),
    expect={"no_lost_acks": Sides(before_min=2)},
)
PLAN = tuple(
    ScheduledFault(f"f{n}", kind, "primary", 2.0, when=When.STEADY, after=f"f{n - 1}" if n else "",
            duration_s=4.0 if kind == "freeze" else None)
    for n, kind in enumerate(["kill", "freeze", "kill", "kill", "freeze", "kill", "kill"])
)  # fmt: skip


def run() -> Run:
    where: Any = None
    return Run(STORY, 7, where, PLAN)


def result(*broken: str) -> RunResult:
    verdicts = [Verdict(check, Validity.INVALID, "it is broken") for check in broken]
    validity = Validity.INVALID if broken else Validity.VALID
    return replace(runs.outcome(), validity=validity, verdicts=verdicts)


def breaks_with_a_freeze(made: Run) -> RunResult:
    """What this pair cannot bear is a freeze that lasts for two seconds."""
    long = any(one.kind == "freeze" and (one.duration_s or 0) >= 2.0 for one in made.plan)
    return result("one_primary") if long else result()


def test_only_what_is_needed_remains() -> None:
    least = shrink.shrink(run(), result("one_primary"), make=breaks_with_a_freeze, tries_max=99)
    (one,) = least.plan
    assert (one.kind, one.duration_s, one.after) == ("freeze", 2.0, "")
    assert least.outcome.validity is Validity.INVALID
    assert least.sentence.startswith("1 fault suffices (")


def test_another_promise_that_breaks_does_not_count() -> None:
    """A smaller plan must break what the larger one broke."""
    least = shrink.shrink(run(), result("one_primary"), make=lambda _run: result("no_leaks"))
    assert least.plan == PLAN


def test_there_is_an_end(tmp_path: Path) -> None:
    made: list[Run] = []

    def play(one: Run) -> RunResult:
        made.append(one)
        return result()

    least = shrink.shrink(run(), result("one_primary"), make=play, tries_max=5)
    assert (least.plan, least.tries, len(made)) == (PLAN, 5, 5)


def test_the_least_plan_is_a_scenario_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "shrunk.toml"
    path.write_text(shrink.text(STORY, 7, PLAN[:3]))
    found = file.load(path)
    assert found.seed == 7 and found.expect == {"no_lost_acks": Sides(before_min=2)}
    assert found.workloads == STORY.workloads
    assert [one.name for one in found.faults] == ["f0", "f1", "f2"]
    assert found.faults[1].choices[0].duration_s == (4.0, 4.0)
    assert found.faults[2].after == "f1" and found.faults[2].when is When.STEADY
    assert tomllib.loads(path.read_text())["title"] == "Much goes wrong (made smaller)"

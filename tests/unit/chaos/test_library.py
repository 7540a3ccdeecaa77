"""The library of scenarios: every file is right, short, told of, and worth its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.scenario.file import examine, load
from coloctl.chaos.scenario.schedule import schedule
from coloctl.chaos.scenario.values import When
from coloctl.chaos.workloads import WORKLOADS

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "scenarios").glob("*.toml"))
#: "One screen each": what a large terminal shows, random lists of faults aside.
LINES_MAX = 80


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_is_right_short_and_says_why(path: Path) -> None:
    found, errors = examine(path)
    assert found is not None, errors
    assert found.why and found.promises and found.expect
    assert set(found.promises) <= {1, 2, 3, 4, 5}
    assert len(path.read_text().splitlines()) <= LINES_MAX
    assert schedule(found, found.seed) == schedule(found, found.seed)
    assert "one_primary" in found.expect and "no_leaks" in found.expect


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_is_the_same_when_it_was_written_and_read_again(
    path: Path, tmp_path: Path
) -> None:
    found, again = load(path), tmp_path / path.name
    again.write_text(tomli_w.dumps(found.to_document()))
    assert load(again) == found


def test_there_are_enough_and_each_promise_is_attacked() -> None:
    assert len(FILES) >= 24
    promises = [promise for path in FILES for promise in load(path).promises]
    assert all(promises.count(promise) >= 5 for promise in (1, 2, 3, 4, 5))


def test_everything_that_there_is_is_used_somewhere() -> None:
    stories = [load(path) for path in FILES]
    choices = [one for story in stories for fault in story.faults for one in fault.choices]
    triggers = [fault.when for story in stories for fault in story.faults]
    assert {one.kind for one in choices} >= set(FAULTS) - {"guest-reset", "reorder", "bandwidth"}
    assert {work.kind for story in stories for work in story.workloads} == set(WORKLOADS)
    assert {when for when in triggers if when} | {one.when for one in choices if one.when} == set(
        When
    )
    assert {name for story in stories for name in story.expect} >= set(CHECKS) - {"never_failed"}


def test_the_table_in_the_readme_is_what_is_there() -> None:
    text = (ROOT / "scenarios" / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert rows == [
        f"| [{story.name}]({story.name}.toml) | {story.title} | "
        f"{', '.join(map(str, sorted(story.promises)))} |"
        for story in map(load, FILES)
    ]


def test_the_docs_list_every_fault() -> None:
    text = (ROOT / "docs" / "scenarios.md").read_text()
    rows = text[text.index("<!-- faults:") :].splitlines()
    assert [line for line in rows if line.startswith("| `")] == [
        f"| `{name}` | {kind.doc} | {', '.join(f'`{target}`' for target in kind.targets)} |"
        for name, kind in sorted(FAULTS.items())
    ]

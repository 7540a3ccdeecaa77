"""A few scenarios run for real, and supervisors that are broken on purpose caught by them.

The whole library is run by `make chaos`. What is checked by a length of time is left out here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.run import batch, runner
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.runner import Run
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.file import load
from coloctl.chaos.scenario.values import Scenario
from coloctl.lab import guest, qemu

pytestmark = pytest.mark.guest

ROOT = Path(__file__).parents[2]
TIMED = ("outage_within", "reprotected_within")
#: `primary-killed-mid-checkpoint` is run on machines (test_machine_scenarios).
SMOKE = ("secondary-ruined", "supervisor-killed-in-failover", "zombie-primary-returns")


@pytest.fixture
def where(guest_image: guest.GuestImage, qemu_builds: Callable[[str], qemu.Build]) -> Testbed:
    build = qemu_builds("11.1")
    return Testbed(build.binary, "tcg", guest_image, f"t{os.getpid()}-runs")


def scenario_of(name: str) -> Scenario:
    whole = load(ROOT / "scenarios" / f"{name}.toml")
    expect = {k: v for k, v in whole.expect.items() if k not in TIMED}
    return whole.model_copy(update={"expect": expect})


def silent(_name: str, _seed: int, _sentence: str) -> None:
    """Nobody listens."""


def test_a_few_scenarios_side_by_side(where: Testbed, tmp_path: Path) -> None:
    scenarios = [(ROOT / "scenarios" / f"{name}.toml", scenario_of(name)) for name in SMOKE]
    todo = batch.tasks(scenarios, where, tmp_path / "artifacts", capture=True)
    outcomes = list(batch.run_all(todo, 2, silent))
    assert {one.scenario.name: one.because() for one in outcomes} == dict.fromkeys(SMOKE, "")
    for one in outcomes:
        assert one.artifacts is not None
        assert not (one.artifacts / "missing.json").exists()
        assert "valid" in (one.artifacts / "report.html").read_text()
        assert (one.artifacts / "lan.pcap").stat().st_size > 10_000
        assert one.to_json()["workloads"][0]["acknowledged"] > 100


def invalid_checks(outcome: RunResult) -> set[str]:
    return {one.check for one in outcome.verdicts if one.validity is Validity.INVALID}


@pytest.mark.parametrize(
    ("broken", "name", "caught_by"),
    [
        ("unfenced", "zombie-primary-returns", {"one_primary", "journal_consistent"}),
        ("hasty", "primary-killed-mid-checkpoint", {"journal_consistent"}),
    ],
)
def test_a_broken_supervisor_is_caught(
    where: Testbed,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    name: str,
    caught_by: set[str],
) -> None:
    """One promotes without a fence, the other announces a survivor before it is promoted."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "broken" / broken))
    scenario = scenario_of(name).model_copy(update={"pair": {"policy": {"auto_reprotect": False}}})
    outcome = runner.make(Run.of(scenario, scenario.seed, where))
    assert outcome.validity is Validity.INVALID, outcome.because()
    assert invalid_checks(outcome) >= caught_by

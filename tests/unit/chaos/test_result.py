"""The document of a run: stable keys, times since the steady state, what clients felt."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from support import runs

from coloctl.chaos import report
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.run import batch, junit
from coloctl.chaos.run.testbed import Testbed
from coloctl.lab.guest import GuestImage


def test_a_recorded_run_is_told() -> None:
    told = json.loads(json.dumps(runs.outcome().to_json()))
    assert (told["schema"], told["verdict"], told["reason"]) == (1, "valid", "")
    assert [one["check"] for one in told["checks"]] == ["no_lost_acks", "connections_survive"]
    kill, freeze = told["faults"]
    assert (kill["kind"], kill["nodes"], kill["healed_s"]) == ("kill", ["a"], None)
    assert 2 < kill["struck_s"] < 5 < kill["protected_again_s"] < freeze["struck_s"]
    assert kill["struck_s"] < kill["protection_lost_s"] < kill["protected_again_s"]
    assert 0 < kill["outage_ms"] < kill["join_ms"], "the join is not taken for the outage"
    first = told["takeovers"][0]
    assert (first["survivor"], first["lost"]) == ("b", "a")
    assert next(iter(first["steps_ms"])) == "detected"
    assert [one["clients"] for one in told["workloads"]] == [2, 2]
    assert all(one["broken"] == 0 < one["acknowledged"] for one in told["workloads"])
    assert told["checkpoint_pause_ms"]["n"] > 10


KEYS = """
    schema verdict reason scenario seed replay started_at duration_s load_ended_s coloctl qemu
    machines checks faults takeovers workloads checkpoint_pause_ms remains artifacts
"""
KEYS_OF_A_FAULT = """
    name kind target params when nodes role struck_s healed_s missed note outage_ms first_reply_ms
    join_ms protection_lost_s protected_again_s
"""


def test_the_keys_of_the_document_are_these() -> None:
    told = runs.outcome().to_json()
    assert sorted(told) == sorted(KEYS.split())
    assert sorted(told["faults"][0]) == sorted(KEYS_OF_A_FAULT.split())


def test_the_machine_of_a_node_is_named_where_it_has_one() -> None:
    here = runs.outcome()
    assert (here.to_json()["machines"], here.place("a")) == (None, "a")
    there = replace(here, machines={"a": "hv1", "b": "hv2"})
    assert there.to_json()["machines"] == {"a": "hv1", "b": "hv2"}
    assert "node a on hv1" in junit.document([there])
    assert "<td>a on hv1 (primary)</td>" in report.page(there)
    assert "node a on hv1, node b on hv2" in report.page(there)
    tips = re.findall(r"<title>([^<]*\bnode [ab]\b[^<]*)", report.page(there))
    assert tips and all(re.search(r"node [ab] on hv[12]", one) for one in tips), tips
    rows = [f'class="lane-name">node {there.place(node)}<' for node in "ab"]
    assert all(row in report.page(there) for row in rows)
    assert not any(row in report.page(here) for row in rows)


@pytest.mark.parametrize(
    ("on", "tls", "options"),
    [("lab", False, ""), ("machines", False, " --machines"), ("lab", True, " --tls")],
)
def test_the_command_that_repeats_a_run_names_what_it_ran_on(
    on: str, tls: bool, options: str
) -> None:
    where = Testbed(Path("qemu"), "tcg", cast(GuestImage, None), "chaos", on=on, tls=tls)
    path = Path("scenarios/link-cut.toml")
    (task,) = batch.tasks([(path, runs.SCENARIO)], where, Path("root"), seed=4)
    assert batch.replay_of(task) == f"coloctl chaos run {path} --seed 4{options}"


def test_a_run_that_never_began_is_told_too() -> None:
    void = runs.outcome(Evidence(5.0, 5.0, (), {}), (), "The pair never came into COLO.")
    told = void.to_json()
    assert told["verdict"] == "unknown"
    assert told["reason"] == "The pair never came into COLO."
    assert told["faults"] == told["workloads"] == told["checks"] == []


def test_the_reason_names_the_guilty_checks_only() -> None:
    verdicts = [
        Verdict("one", Validity.VALID, "fine"),
        Verdict("two", Validity.INVALID, "6 records are missing"),
        Verdict("three", Validity.UNKNOWN, "nobody knows"),
    ]
    assert runs.outcome(verdicts=verdicts).because() == "two: 6 records are missing"


def test_what_comes_after_the_next_fault_is_not_the_first_ones_doing() -> None:
    evidence = runs.recorded()
    first, second = evidence.faults
    late = replace(second, at_s=first.at_s + 0.001)
    effects = replace(evidence, faults=[first, late]).chronicle.effects
    assert (effects[0].lost_s, effects[0].outage.longest_ms) == (None, 305.0)

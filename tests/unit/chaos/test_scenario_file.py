"""Scenario files: what is read from them, and how they are complained about."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.scenario import file
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import Scenario, When
from coloctl.chaos.workloads import WORKLOADS, AppendsParams, StreamParams
from coloctl.errors import ScenarioError

WHOLE = """
title = "Primary is killed"
why = "Because."
seed = 7
promises = [1, 3]
settle_s = 1.5

[steady_state]
checkpoints_min = 5

[pair.checkpoint]
delay_ms = 250

[guest]
loopback = false

[[workload]]
kind = "redis-appends"
clients = 3

[[workload]]
name = "more"
kind = "redis-appends"
begins = "protected"
pause_ms = 10.0

[[fault]]
name = "first"
at_s = 2
kind = "kill"
target = "primary"
when = "checkpoint"

[[fault]]
after = "first"
at_s = [1.0, 2.0]
every_s = [0.5, 1.0]
times = 4

[[fault.random]]
kind = "freeze"
target = "secondary"
duration_s = 3.0
weight = 2.0

[[fault.random]]
kind = "guest-panic"

[expect]
no_lost_acks = { before_min = 5 }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "story.toml"
    path.write_text(text)
    return path


def loaded(folder: Path, text: str = WHOLE) -> Scenario:
    return file.load(written(folder, text))


def test_everything_is_read(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert (found.name, found.title, found.seed, found.promises) == (
        "story", "Primary is killed", 7, (1, 3),
    )  # fmt: skip
    assert found.steady_state.checkpoints_min == 5 and found.steady_state.protection == "colo"
    assert found.pair == {"checkpoint": {"delay_ms": 250}}
    assert found.guest.loopback is False
    assert [(work.name, work.numbered_from, work.begins) for work in found.workloads] == [
        ("redis-appends", 0, "booted"), ("more", 3, "protected"),
    ]  # fmt: skip
    assert found.workloads[1].params == AppendsParams(pause_ms=10.0)
    first, rest = found.faults
    assert first.at_s == (2.0, 2.0) and first.when is When.CHECKPOINT
    assert rest.name == "random-2" and rest.times == 4 and rest.after == "first"
    assert [one.target for one in rest.choices] == ["secondary", "guest"]
    assert rest.choices[0].duration_s == (3.0, 3.0) and rest.choices[0].weight == 2.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "kill"', 'kind = "kil"', 'fault[0].kind: There is no fault called "kil".'),
        ('"redis-appends"\nclients', '"redis"\nclients', "workload[0].kind: There is no workload"),
        ("no_lost_acks", "no_lost_ack", 'expect.no_lost_ack: There is no check called "no_lost_ac'),
        ("before_min = 5", "befor_min = 5", "expect.no_lost_acks.befor_min: There is no such key"),
        ("pause_ms = 10.0", 'pause_ms = "x"', "workload[1].pause_ms: This must be a number"),
        ('target = "primary"\n', "", "fault[0].target: kill needs a target."),
        ('target = "primary"', 'target = "nbd"', '"nbd" is nothing that kill can hit.'),
        ("at_s = 2", "at_s = [3, 2]", "fault[0].at_s: [3, 2] is no span of time."),
        ("at_s = 2", 'at_s = "2"', "fault[0].at_s: This must be a number of seconds, or two"),
        ('when = "checkpoint"', 'when = "lunch"', 'fault[0].when: "lunch" is no moment.'),
        ('after = "first"', 'after = "frist"', 'There is no fault called "frist".'),
        ('name = "first"', 'name = "first"\nafter = "first"', "cannot come after itself"),
        ('when = "checkpoint"', "duration_s = 2.0", "kill does not last, so nothing heals it."),
        ("times = 4", 'times = 4\nkind = "kill"', "A random fault has no kind of its own."),
        ('name = "more"', "", 'workload: Two are called "redis-appends".'),
        ("[pair.checkpoint]\ndelay_ms", "[pair.disk]\nx", "pair.disk: This table is the lab's."),
        ("settle_s", "setle_s", "setle_s: There is no such key in scenario files."),
        ('title = "Primary is killed"', "", "title: This key is missing."),
        ("seed = 7", 'name = "x"', "name: There is no such key in scenario files."),
        (
            "clients = 3",
            "numbered_from = 3",
            "workload[0].numbered_from: There is no such key in w",
        ),
        ("weight = 2.0", "params = {}", "fault[1].random[0].params: There is no such key in fault"),
        ("times = 4", "share = 0.1", "fault[1].share: There is no such key in random faults."),
        ("promises = [1, 3]", "promises = 1", "promises: This must be a list in square brackets"),
        ('when = "checkpoint"', "then_s = 2", "fault[0].then_s: This counts from a moment"),
        ("clients = 3", 'after = "first"', "workload[0].after: Clients that come before the first"),
        ('"protected"', '"steady"\nafter = "x"', 'workload[1].after: There is no fault called "x"'),
        ('"protected"', '"failed"', "workload[1].begins: "),
        ("settle_s = 1.5", "settle_s = 86401.0", "settle_s: 86401.0 is too large"),
        ("{ before_min = 5 }", "5", "expect.no_lost_acks: This must be a table, not 5."),
        ("seed = 7", "seed = ", "This is not TOML"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in WHOLE
    with pytest.raises(ScenarioError) as error:
        loaded(tmp_path, WHOLE.replace(old, new, 1))
    assert said in error.value.message
    assert "story.toml" in error.value.path and error.value.exit_code == 2


def test_hints_name_what_was_meant(tmp_path: Path) -> None:
    broken = WHOLE.replace('kind = "kill"', 'kind = "kil"').replace("no_lost_acks", "lost_acks")
    found, errors = file.examine(written(tmp_path, broken))
    assert found is None
    assert [error.hint for error in errors] == ["did you mean kill?", "did you mean no_lost_acks?"]


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    broken = WHOLE.replace('kind = "kill"', 'kind = "kil"').replace("no_lost_acks", "lost_acks")
    with pytest.raises(ScenarioError, match="1 more problem"):
        loaded(tmp_path, broken)


def test_a_scenario_needs_clients(tmp_path: Path) -> None:
    nothing = 'title = "x"\nwhy = "y"\nworkload = []\nexpect = { one_primary = {} }\n'
    with pytest.raises(ScenarioError, match="workload: A scenario needs clients"):
        loaded(tmp_path, nothing)


def test_a_scenario_travels_to_another_process(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert pickle.loads(pickle.dumps(found)) == found


def test_keys_of_another_kind_are_an_error_in_python() -> None:
    assert AppendsParams.of(Params()) == AppendsParams()
    with pytest.raises(AssertionError, match="another kind"):
        AppendsParams.of(StreamParams())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        file.load(tmp_path / "none.toml")


def test_the_schema_knows_every_kind() -> None:
    schema = file.json_schema()
    tables = schema["$defs"]
    assert tables["FaultSpec"]["properties"]["kind"]["enum"] == sorted(FAULTS)
    assert tables["Workload"]["properties"]["kind"]["enum"] == sorted(WORKLOADS)
    assert set(schema["properties"]["expect"]["properties"]) == set(CHECKS)
    hidden = {"name", "params", "numbered_from"}
    assert not hidden & {*schema["properties"], *tables["Workload"]["properties"]} - {"name"}
    assert '"#/$defs/Params"' not in json.dumps(schema) and "name" not in schema["properties"]

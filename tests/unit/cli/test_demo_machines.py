"""What the demo takes away on machines, and what its document says of each step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import runs

from coloctl.chaos.scenario.schedule import schedule
from coloctl.cli import demo_machines
from coloctl.cli.demo_machines import MachinesPlan
from coloctl.cli.verbs import run_verb
from coloctl.cli.verbs.demo import step_line

pytestmark = pytest.mark.unit


def test_each_machine_is_off_once_and_is_the_secondary_s_then() -> None:
    scenario = demo_machines.scenario_of(MachinesPlan(3), 500)
    faults = schedule(scenario, 1)
    assert [(one.name, one.kind, one.target) for one in faults] == [
        ("off", "machine-crash", "secondary"),
        ("switch", "operator", "pair"),
        ("upgrade", "machine-shutdown", "secondary"),
    ]
    assert [one.after for one in faults] == ["", "off", "switch"]
    assert scenario.workloads[0].clients == 3
    assert scenario.pair.get("policy", {}).get("auto_reprotect", True)


def test_each_step_has_its_times_and_what_was_copied_for_it() -> None:
    whole = runs.recorded()
    name, work = next(iter(whole.works.items()))
    result = runs.outcome(replace(whole, works={name: work}))
    found = demo_machines.document(MachinesPlan(2), result)
    assert found["killed"] == demo_machines.KILLED
    steps = found["machines"]
    assert [one["node"] for one in steps] == [one.nodes[0] for one in whole.faults]
    assert steps[0]["at_s"] == round(whole.faults[0].at_s - whole.steady_s, 1)
    assert steps[0]["outage_ms"] == found["outage_ms"]
    assert all(one["protected_after_s"] > 0 for one in steps)


def test_a_step_is_one_line() -> None:
    step = {
        "step": "off",
        "off_s": 4.0,
        "outage_ms": 310.0,
        "protected_after_s": 6.5,
        "copied": {"method": "difference", "sent": 3 << 20, "full": 1 << 29},
    }
    line = step_line(step)
    assert line.startswith("for 4.0 s, longest silence 310")
    assert line.endswith("protected again after 6.5 s, 3.0 MiB copied (difference)")
    switched = step | {"off_s": None, "protected_after_s": None, "copied": None}
    assert step_line(switched).startswith("longest silence")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["demo", "--machines", "--keep"], "no QEMU is killed, and nothing is kept"),
        (["demo", "--machines", "--kill", "secondary"], "no QEMU is killed"),
        (["bench", "failover", "--cause", "secondary-power-off"], "needs machines."),
    ],
)
def test_what_does_not_go_with_machines_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert run_verb(words) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err

"""Runs on the lab's machines over ssh: a QEMU and whole machines are lost, nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import sshhost

from coloctl.chaos.evidence.remains import remains
from coloctl.chaos.run import batch
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.file import load
from coloctl.lab import guest, machine_group, machine_store, qemu
from coloctl.lab.machine_layout import MACHINES

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

SCENARIOS = Path(__file__).parents[2] / "scenarios"
#: Checks of a length of time are left out: a suite keeps the machine busy.
TIMED = ("outage_within", "reprotected_within")


NAME = f"t{os.getpid()}-md"
DEMO = [sys.executable, "-m", "coloctl.cli.main", "demo", "--machines", "--name", NAME]
#: The demonstration takes 45 s; a busy machine has been seen to need three times that.
PATIENCE_S = 300


def test_the_demo_takes_both_machines_away_and_loses_nothing() -> None:
    done = subprocess.run(
        [*DEMO, "-f", "json"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    document = json.loads(done.stdout)
    assert document["verdict"] == "valid"
    assert document["acks"]["acknowledged"] > 0
    assert (document["acks"]["lost"], document["connections"]["broken"]) == (0, 0)
    assert [one["step"] for one in document["machines"]] == ["off", "switch", "upgrade"]
    assert document["left_behind"] == []
    assert nothing_is_left()


def test_an_interrupt_of_the_demo_leaves_nothing_on_any_machine() -> None:
    """By SIGTERM, as a CI does that cancels a job; by Ctrl-C in `test_demo`."""
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            # Both machines have an agent then, and the primary's QEMU serves.
            while line := demo.stdout.readline():
                if "The guest is protected" in line:
                    break
            assert demo.poll() is None
        finally:
            demo.send_signal(signal.SIGTERM)
            _, said = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 130, said
    assert nothing_is_left()


def nothing_is_left() -> bool:
    assert remains(NAME, plan=MACHINES) == []
    groups = [one for one in machine_group.names() if one.startswith(NAME)]
    return groups == [] and NAME not in machine_store.names()


@pytest.mark.parametrize("name", ["primary-killed-mid-checkpoint"])
def test_a_scenario_on_machines_is_valid_and_leaves_nothing_on_them(
    name: str,
    guest_image: guest.GuestImage,
    qemu_builds: Callable[[str], qemu.Build],
    tmp_path: Path,
) -> None:
    where = Testbed(
        qemu_builds("11.1").binary, "tcg", guest_image, f"t{os.getpid()}-mr", on="machines"
    )
    path = SCENARIOS / f"{name}.toml"
    whole = load(path)
    expect = {key: given for key, given in whole.expect.items() if key not in TIMED}
    scenario = whole.model_copy(update={"expect": expect})
    todo = batch.tasks([(path, scenario)], where, tmp_path / "artifacts")
    (outcome,) = batch.run_all(todo, 1, lambda *_: None)
    assert outcome.because() == ""
    assert outcome.artifacts is not None
    assert not (outcome.artifacts / "missing.json").exists()
    assert {fault.fault.kind for fault in outcome.evidence.faults} == {
        one.kind for fault in scenario.faults for one in fault.choices
    }

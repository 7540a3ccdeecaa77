"""Scenarios run on the lab's machines over ssh: a QEMU, a monitor and a whole machine are lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import sshhost

from coloctl.chaos.run import batch
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.file import load
from coloctl.lab import guest, qemu

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

SCENARIOS = Path(__file__).parents[2] / "scenarios"
#: Checks of a length of time are left out: a suite keeps the machine busy.
TIMED = ("outage_within", "reprotected_within")


@pytest.mark.parametrize("name", ["primary-killed-mid-checkpoint", "secondary-machine-off"])
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

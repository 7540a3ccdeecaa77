"""The site of a run: the processes and files of its nodes, as they are found from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from support.views import pair_view

from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import NothingToHit, PairUnderTest, build
from coloctl.chaos.run.site import LabSite, MachineSite, site_of
from coloctl.chaos.scenario.file import load
from coloctl.chaos.scenario.tables import Params
from coloctl.cli.verbs.chaos import possible
from coloctl.lab.machine import LabMachine, MachineState
from coloctl.lab.machine_layout import MACHINES
from coloctl.lab.machines import Machines
from coloctl.lab.network import Lab

pytestmark = pytest.mark.unit

SCENARIOS = Path(__file__).parents[3] / "scenarios"


class Numbered:
    """A machine that numbers its processes from 1000 on, as they are found here."""

    def __init__(self, name: str) -> None:
        self.name, self.powered, self.frozen = name, True, False

    def outer(self, pid: int) -> int | None:
        return 1000 + pid if self.powered else None

    def here(self, path: Path) -> Path:
        return Path("/machines") / self.name / path.relative_to("/")

    def state(self) -> MachineState:
        if not self.powered:
            return MachineState.OFF
        return MachineState.FROZEN if self.frozen else MachineState.UP

    def crash(self) -> None:
        self.powered = False

    def boot(self) -> None:
        self.powered = True

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


class Three(Machines):
    """Machines without any of the system's parts."""

    def __init__(self) -> None:
        self.plan = MACHINES
        self.machines = {name: cast(LabMachine, Numbered(name)) for name in ("hv1", "hv2")}


def test_hosts_of_a_lab_have_the_files_and_processes_of_this_system() -> None:
    site = site_of(Lab("site"))
    assert isinstance(site, LabSite)
    assert site.outer("a", 7) == 7
    assert site.file("b", Path("/images/b")) == Path("/images/b")
    assert site.folder("web", "a").parts[-2:] == ("web", "a")
    assert not site.environment


def test_a_machine_numbers_its_processes_itself_and_has_its_own_root() -> None:
    site = site_of(Three())
    assert isinstance(site, MachineSite)
    assert [site.machine(node).name for node in ("a", "b")] == ["hv1", "hv2"]
    assert site.outer("b", 7) == 1007
    assert site.file("b", Path("/images/b")) == Path("/machines/hv2/images/b")
    assert site.folder("web", "a") == Path("/machines/hv1/run/coloctl/web/a")


def test_a_scenario_is_left_out_where_its_faults_cannot_be_injected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("primary-killed", "images-full-a", "secondary-machine-off")
    found = [(path, load(path)) for path in (SCENARIOS / f"{name}.toml" for name in names)]
    assert [path.stem for path, _ in possible(found, "lab")] == ["primary-killed", "images-full-a"]
    assert "secondary-machine-off is left out" in capsys.readouterr().err
    on_machines = [path.stem for path, _ in possible(found, "machines")]
    assert on_machines == ["primary-killed", "secondary-machine-off"]
    assert "images-full-a is left out" in capsys.readouterr().err


def pair_on(site: LabSite | MachineSite) -> PairUnderTest:
    view = pair_view(a=("primary", 7), b=("secondary", 8))
    return PairUnderTest("web", site, Path("/"), lambda: view, cast(Any, None))


@pytest.mark.parametrize(
    ("kind", "changed"),
    [("machine-crash", MachineState.OFF), ("machine-freeze", MachineState.FROZEN)],
)
def test_a_machine_that_was_hit_runs_again_when_it_is_healed(
    kind: str, changed: MachineState
) -> None:
    site = MachineSite(Three())
    fault = build(FAULTS, pair_on(site), kind, "secondary", Params())
    injected = fault.inject()
    assert (injected.nodes, injected.role, injected.note) == (("b",), "secondary", "machine hv2")
    assert [site.machine(node).state() for node in ("a", "b")] == [MachineState.UP, changed]
    for _ in range(2):
        fault.heal()
        assert site.machine("b").state() is MachineState.UP


def test_a_lab_without_machines_has_none_to_hit() -> None:
    with pytest.raises(NothingToHit, match="machine of its own"):
        build(FAULTS, pair_on(LabSite(Lab("site"))), "machine-crash", "a", Params()).inject()


def test_the_processes_of_a_machine_that_is_off_are_no_targets() -> None:
    pair = pair_on(MachineSite(Three()))
    assert [(one.name, one.pid) for one in pair.nodes("both")] == [("a", 1007), ("b", 1008)]
    cast(MachineSite, pair.site).machine("b").crash()
    assert [one.name for one in pair.nodes("both")] == ["a"]

"""A run's pair file has all that was asked for; two runs of one machine never use one lab."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from coloctl import pairfile, paths
from coloctl.chaos.faults.fault import Setup, environment_set
from coloctl.chaos.run import testbed
from coloctl.chaos.run.environment import needs_services
from coloctl.chaos.run.site import LabSite
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import Scenario, Workload
from coloctl.errors import PairBusy
from coloctl.lab.guest import GuestImage
from coloctl.lab.network import Lab

pytestmark = pytest.mark.unit

NAME = f"u{os.getpid()}"


def test_each_gets_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    with testbed.free_name(NAME) as first, testbed.free_name(NAME) as second:
        assert (first, second) == (NAME, f"{NAME}2")
    kept = paths.control_socket(NAME)
    kept.parent.mkdir()
    kept.touch()
    with testbed.free_name(NAME) as free:
        assert free == f"{NAME}2"


def test_an_error_inside_is_not_taken_for_a_name_in_use() -> None:
    with pytest.raises(PairBusy, match="inside"), testbed.free_name(NAME):
        raise PairBusy("inside")


def test_a_lab_that_somebody_sets_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before anything runs in it; and it is not taken down by whoever was refused."""

    class Standing:
        labs = 0

        def down(self) -> None:
            Standing.labs -= 1

    def up(name: str) -> Standing:
        Standing.labs += 1
        return Standing()

    monkeypatch.setattr(testbed.Lab, "up", up)
    nowhere = Path("/nowhere")
    where = Testbed(nowhere, "tcg", GuestImage(nowhere, nowhere, "", nowhere), NAME)
    with testbed.lab(where):
        with pytest.raises(PairBusy, match=f"The lab {NAME} is in use"), testbed.lab(where):
            pass
        assert Standing.labs == 1
    assert Standing.labs == 0


# -- the pair file


@pytest.fixture
def where(tmp_path: Path) -> Testbed:
    for part in ("kernel", "initrd", "disk"):
        (tmp_path / part).write_text(part)
    guest = GuestImage(tmp_path / "kernel", tmp_path / "initrd", "quiet", tmp_path / "disk")
    detection = {"heartbeat_ms": 40, "suspect_after_ms": 300}
    return Testbed(tmp_path / "qemu", "tcg", guest, "web", 200, detection=detection)


def test_the_tables_of_a_scenario_lie_over_those_of_the_testbed(
    where: Testbed, tmp_path: Path
) -> None:
    (images := tmp_path / "small").mkdir()
    setup = Setup("web", tmp_path / "home", LabSite(Lab("lab")), where.qemu, images={"b": images})
    tables = {"detection": {"suspect_after_ms": 500}, "policy": {"auto_reprotect": False}}
    pair = pairfile.load(testbed.write_pair(where, setup, {"services": True}, tables))
    assert (pair.name, pair.checkpoint.delay_ms) == ("web", 200)
    assert (pair.detection.heartbeat_ms, pair.detection.suspect_after_ms) == (40, 500)
    assert not pair.policy.auto_reprotect
    assert "coloctl.services=1" in pair.guest.append.split()
    image = pair.disks[0].image
    assert image == {"a": setup.home / "web-a.qcow2", "b": images / "web-b.qcow2"}
    assert all(path.read_text() == "disk" for path in image.values())


@pytest.mark.parametrize("circular", [False, True])
def test_a_pair_of_the_plugin_protects_itself_again_where_that_is_asked_for(
    where: Testbed, tmp_path: Path, circular: bool
) -> None:
    asked = replace(where, circular=circular)
    pair = pairfile.load(testbed.pair_file(asked, Lab("lab"), tmp_path))
    assert pair.policy.auto_reprotect is circular
    assert "coloctl.services=1" not in pair.guest.append


def test_a_guest_has_services_only_where_they_are_used() -> None:
    def needs(kind: str, check: str = "connections_survive") -> bool:
        scenario = Scenario(
            title="One", why="So.", workloads=(Workload(kind=kind),), expect={check: Params()}
        )
        return needs_services(scenario)

    assert [needs("redis-appends"), needs("redis-registers")] == [False, False]
    assert [needs("http"), needs("disk-writer")] == [True, True]
    assert needs("redis-appends", "one_boot")


def test_variables_are_put_back() -> None:
    os.environ["COLOCTL_TEST_KEPT"] = "before"
    try:
        with environment_set({"COLOCTL_TEST_KEPT": "now", "COLOCTL_TEST_NEW": "now"}):
            assert os.environ["COLOCTL_TEST_KEPT"] == os.environ["COLOCTL_TEST_NEW"] == "now"
        assert os.environ["COLOCTL_TEST_KEPT"] == "before"
        assert "COLOCTL_TEST_NEW" not in os.environ
    finally:
        del os.environ["COLOCTL_TEST_KEPT"]

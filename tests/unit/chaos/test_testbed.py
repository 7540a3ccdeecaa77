"""Two who play at the same time on one machine never use the same lab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coloctl import paths
from coloctl.chaos.run import testbed
from coloctl.chaos.run.testbed import Testbed
from coloctl.errors import PairBusy
from coloctl.lab.guest import GuestImage

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

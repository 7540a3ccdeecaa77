"""The supervisor of a real pair is killed at many moments: its guest and its data stay."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.moments import Moment, Mortal, Outcome, mortal, survive
from support.orphans import end, leave_alone

from coloctl import paths
from coloctl.errors import ColoctlError
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def build() -> qemu.Build:
    """The one QEMU of the matrix that can do COLO with every accelerator."""
    return qemu.provide("11.1")


@pytest.fixture
def pair(build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    with mortal(tmp_path, build) as pair:
        yield pair


def start(pair: Mortal) -> dict[str, Any]:
    pair.type("start", str(pair.file))
    pair.mark()
    view = pair.view()
    assert view["protection"] == "colo"
    return view


def serves(pair: Mortal, pid: int) -> bool:
    try:
        return bool(pair.view()["supervisor_pid"] == pid)
    except ColoctlError:
        return False


def sound(outcome: Outcome) -> bool:
    return outcome.guests == 1 and outcome.data_intact and outcome.supervised


def test_the_next_supervisor_knows_what_the_killed_one_knew(pair: Mortal) -> None:
    before = start(pair)
    pair.type("set", pair.name, "checkpoint-delay=150", "compare-timeout=450")
    pair.type("set", pair.name, "mirror-rate=1MiB")
    settings = pair.view()["settings"]
    assert settings["mirror-rate"] == {"value": 1 << 20, "pair_file": 0}
    pair.ask("pair-pause")
    end(before["supervisor_pid"])
    after = pair.settled()
    assert after is not None and after["supervisor_pid"] != before["supervisor_pid"]
    assert [n["pid"] for n in after["nodes"]] == [n["pid"] for n in before["nodes"]]
    assert (after["protection"], after["checkpoints"]["delay_ms"]) == ("colo", 150)
    assert after["settings"] == settings
    assert after["reason"] == before["reason"] and after["paused"]
    assert pair.marked() and pair.guests() == 1
    pair.type("checkpoint", pair.name)  # it can be acted upon


@pytest.mark.parametrize("step", ["connect", "compare", "first checkpoint"])
def test_a_protection_cut_short_is_undone_and_done_again(pair: Mortal, step: str) -> None:
    outcome = survive(pair, Moment("protect", step))
    assert sound(outcome) and outcome.protection == "colo", outcome
    assert set(outcome.qemus_before) < set(outcome.qemus)  # the guest's QEMU is still the same


@pytest.mark.parametrize("step", ["fenced", "arbitrated", "promoted"])
def test_a_failover_cut_short_is_finished(pair: Mortal, step: str) -> None:
    outcome = survive(pair, Moment("failover", step))
    assert sound(outcome) and outcome.protection == "unprotected", outcome
    assert len(outcome.qemus) == 1 and set(outcome.qemus) < set(outcome.qemus_before)


def test_a_start_whose_guest_never_ran_is_begun_anew(pair: Mortal) -> None:
    outcome = survive(pair, Moment("start", "secondary"))
    assert sound(outcome) and outcome.protection == "colo", outcome


def test_a_stop_cut_short_is_finished(pair: Mortal) -> None:
    survive(pair, Moment("stop", "let go"))
    assert pair.settled() is None and not paths.pair_dir(pair.name).exists()


def test_without_a_watcher_a_person_adopts_the_pair(pair: Mortal) -> None:
    before = start(pair)
    leave_alone(pair)
    by_hand = pair.begin("run", str(pair.file))
    pair.until(lambda: serves(pair, by_hand.pid))
    assert pair.view()["protection"] == "colo"
    by_hand.send_signal(signal.SIGTERM)
    by_hand.communicate(timeout=60)
    assert by_hand.returncode == 0
    refused = pair.type("start", str(pair.file))
    assert f"coloctl start {pair.file} --adopt" in refused
    pair.type("start", str(pair.file), "--adopt")
    after = pair.view()
    assert [n["pid"] for n in after["nodes"]] == [n["pid"] for n in before["nodes"]]
    assert after["protection"] == "colo" and pair.marked()
    assert "already serves" in pair.type("run", str(pair.file))


def test_a_node_that_died_unwatched_is_found(pair: Mortal) -> None:
    start(pair)
    primary, secondary = pair.qemus()
    leave_alone(pair)
    end(primary)
    pair.type("start", str(pair.file), "--adopt")
    pair.until(lambda: pair.view()["protection"] != "colo")
    if pair.view()["protection"] == "failover":
        pair.type("failover", pair.name, "--yes")
    after = pair.settled()
    assert after is not None and after["protection"] == "unprotected"
    assert pair.qemus() == (secondary,) and pair.marked() and pair.guests() == 1

"""Real pairs whose journal is gone, or whose QEMUs a stranger imitates: the guest that runs stays.

Goal: what runs is found by the kernel's word, and adopted or refused. Method: a pair is brought
about and left without supervisor and watcher, something is taken away or added, and an operator
types what our messages say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.livings import forged_qemu
from support.moments import Mortal, mortal
from support.orphans import end, leave_alone

from coloctl import paths
from coloctl.host.process import identity_of
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

NOBODY = 65534


@pytest.fixture(scope="module")
def build() -> qemu.Build:
    return qemu.provide("11.1")


@pytest.fixture
def pair(build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    with mortal(tmp_path, build) as pair:
        yield pair


def protected(pair: Mortal) -> tuple[int, ...]:
    pair.type("start", str(pair.file))
    pair.mark()
    assert pair.view()["protection"] == "colo"
    return pair.qemus()


def lose_journal(pair: Mortal) -> None:
    (paths.pair_dir(pair.name) / "journal.jsonl").rename(pair.file.with_suffix(".jsonl"))


def alive(*pids: int) -> bool:
    return all(identity_of(pid) for pid in pids)


def test_a_protected_pair_whose_journal_was_moved_away_is_adopted_whole(pair: Mortal) -> None:
    before = protected(pair)
    leave_alone(pair)
    lose_journal(pair)
    refused = pair.type("start", str(pair.file))
    assert all(f"process {pid}" in refused for pid in before)
    assert f"coloctl start {pair.file} --adopt" in refused
    assert alive(*before)
    pair.type("start", str(pair.file), "--adopt")
    after = pair.settled()
    assert after is not None and after["protection"] == "colo"
    assert pair.qemus() == before and pair.marked() and pair.guests() == 1
    assert "journal was lost" in after["reason"]
    pair.type("failover", pair.name, "--yes")  # it can be acted upon
    survived = pair.settled()
    assert survived is not None and survived["protection"] == "unprotected" and pair.marked()


def test_a_survivor_whose_journal_was_moved_away_serves_on(pair: Mortal) -> None:
    """The guest runs in what was launched as a secondary, whose command line says so still."""
    protected(pair)
    pair.type("failover", pair.name, "--yes")
    (survivor,) = pair.qemus()
    generation = pair.view()["generation"]
    leave_alone(pair)
    lose_journal(pair)
    assert f"process {survivor}" in pair.type("start", str(pair.file))
    pair.type("start", str(pair.file), "--adopt")
    after = pair.settled()
    assert after is not None and after["protection"] == "unprotected"
    assert pair.qemus() == (survivor,) and pair.primary() == "b" and pair.marked()
    assert after["generation"] == generation
    # The journal is whole again: the next supervisor takes over as ever.
    end(after["supervisor_pid"])
    again = pair.settled()
    assert again is not None and pair.qemus() == (survivor,) and pair.marked()


def test_a_journal_of_an_earlier_life_decides_nothing(pair: Mortal, tmp_path: Path) -> None:
    """It was put back from a copy: it names processes that are gone, and says what was then."""
    protected(pair)
    journal = paths.pair_dir(pair.name) / "journal.jsonl"
    kept = tmp_path / "kept"
    pair.type("failover", pair.name, "--yes")
    kept.write_bytes(journal.read_bytes())
    pair.type("stop", pair.name, "--force", "--yes")
    before = protected(pair)
    leave_alone(pair)
    journal.write_bytes(kept.read_bytes())
    pair.type("start", str(pair.file), "--adopt")
    after = pair.settled()
    assert after is not None and after["protection"] == "colo"
    assert pair.qemus() == before and pair.marked()


def test_a_damaged_journal_ends_nothing_and_its_hint_leads_on(pair: Mortal) -> None:
    before = protected(pair)
    leave_alone(pair)
    journal = paths.pair_dir(pair.name) / "journal.jsonl"
    journal.write_bytes(b"nonsense\n" + journal.read_bytes())
    for words in (("start", str(pair.file)), ("start", str(pair.file), "--adopt")):
        said = pair.type(*words)
        assert "damaged" in said and "--adopt" in said, said
    assert alive(*before)
    lose_journal(pair)
    pair.type("start", str(pair.file), "--adopt")
    assert pair.qemus() == before and pair.marked()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become another user")
def test_a_strangers_process_is_never_taken_for_a_node(pair: Mortal) -> None:
    """Any local user can run a process with the words of a QEMU; its end is no end of ours."""
    before = protected(pair)
    leave_alone(pair)
    folder = paths.pair_dir(pair.name)
    with (
        forged_qemu(folder, "a", uid=NOBODY) as a,
        forged_qemu(folder, "b", "-incoming", "defer", uid=NOBODY) as b,
    ):
        pair.type("start", str(pair.file), "--adopt")
        assert pair.qemus() == before
        a.kill()
        a.wait()
        assert b.poll() is None
        pair.type("checkpoint", pair.name)
        view = pair.view()
        assert view["protection"] == "colo" and view["diagnosis"] == "healthy"
    assert pair.qemus() == before and pair.marked()

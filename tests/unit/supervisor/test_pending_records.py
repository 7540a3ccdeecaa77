"""While the journal cannot be written the guest is saved, and nothing is forgotten."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.fakes import Log, fake_state, in_colo

from coloctl.colo import generation
from coloctl.errors import PreconditionFailed
from coloctl.ha.arbiter import FileArbiter
from coloctl.host import durable
from coloctl.journal import Journal, replay
from coloctl.model.event import Kind, Record
from coloctl.model.protection import Fact, Protection
from coloctl.supervisor import acts
from coloctl.supervisor.pending_records import PendingRecords

pytestmark = pytest.mark.unit


def no_room(*_: Any, **__: Any) -> Any:
    raise PreconditionFailed("There is no room.", hint="free some space")


class Full:
    """No room for the journal, for claims, and beside the images where that is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, images: bool) -> None:
        self._patch = monkeypatch
        monkeypatch.setattr(Journal, "append", no_room)
        monkeypatch.setattr(FileArbiter, "claim", no_room)
        monkeypatch.setattr(durable, "replace", no_room)
        if images:
            monkeypatch.setattr(generation, "write", no_room)

    def over(self) -> None:
        self._patch.undo()


def note(number: int) -> Record:
    return Record(Kind.NOTE, data={"number": number})


def deed(number: int) -> Record:
    """What must be on the disk before the act goes on."""
    return Record(Kind.OUTCOME, act="protect", data={"number": number})


def numbers(path: Path) -> list[Any]:
    return [r.data["number"] for r in replay(path).records if "number" in r.data]


def test_what_could_not_be_written_comes_before_what_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        pending_records = PendingRecords(journal, kept_max=4)
        pending_records.append(deed(0))
        with monkeypatch.context() as full:
            full.setattr(Journal, "append", no_room)
            for number in range(1, 8):
                pending_records.append(note(number))
            with pytest.raises(PreconditionFailed, match="no room"):
                pending_records.append(deed(8))
            pending_records.settle()
            sentence = pending_records.sentence()
            assert sentence.startswith("There is no room. Until there is room, nothing new is ")
        before = journal.stamped(note(0)).mono_s
        pending_records.append(deed(9))
        assert not pending_records.sentence() and pending_records.dropped == 4
    assert numbers(path) == [0, 4, 5, 6, 7, 9]
    late = next(r for r in replay(path).records if r.data.get("number") == 7)
    assert late.mono_s < before  # when it happened, not when it was written


def test_the_end_of_a_problem_is_seen_where_nothing_is_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        pending_records = PendingRecords(journal)
        with monkeypatch.context() as full, pytest.raises(PreconditionFailed):
            full.setattr(Journal, "append", no_room)
            pending_records.append(deed(1))
        assert pending_records.sentence()
        pending_records.settle()
        assert not pending_records.sentence()


async def test_a_guest_is_saved_where_only_its_disks_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, _, _):
        full = Full(monkeypatch, images=False)
        timeline = await acts.failover(state, "b")
        assert (state.protection, timeline.generation) == (Protection.UNPROTECTED, 1)
        assert "b: x-colo-lost-heartbeat" in log
        kept = await generation.read(state.spec, state.ground.hosts)
        assert kept["b"].generation == 1  # what the next start goes by
        assert "no room" in state.view().unwritten
        with pytest.raises(PreconditionFailed):  # nothing new is begun
            async with state.acting("protect"):
                pass
        full.over()
        state.pending_records.settle()
    facts = [one.fact for one in replay(tmp_path / "journal.jsonl").records if one.fact]
    assert facts[-2:] == [Fact.NODE_LOST, Fact.SURVIVOR_RUNS]


async def test_a_healthy_pair_is_left_alone_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, a, b):
        full = Full(monkeypatch, images=True)
        with pytest.raises(PreconditionFailed, match="no room"):
            await acts.failover(state, "b")
        assert state.protection is Protection.COLO and state.generation == 0
        assert a.process.alive() and b.process.alive()
        assert "a: tap-a0 down" not in log
        full.over()
        await acts.failover(state, "b")
        assert state.protection is Protection.UNPROTECTED


async def test_a_person_decides_without_any_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_colo(tmp_path) as (state, _, _):
        Full(monkeypatch, images=True)
        await acts.failover(state, "b", force=True)
        assert state.protection is Protection.UNPROTECTED
        assert "next start would not begin" in state.view().reason


@pytest.mark.parametrize("force", [True, False])
async def test_a_stop_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    async with in_colo(tmp_path) as (state, a, b):
        Full(monkeypatch, images=True)
        await acts.stop(state, force=force, timeout_s=0.1)
        assert state.protection is Protection.DOWN
        assert not a.process.alive() and not b.process.alive()


def test_a_journal_that_was_left_is_opened_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that begins on a read-only folder adopts what runs."""
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(note(1))
    real = os.open

    def read_only(name: Any, flags: int, *more: Any, **rest: Any) -> int:
        if str(name).startswith(str(tmp_path)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return real(name, flags, *more, **rest)

    with monkeypatch.context() as full:
        full.setattr(os, "open", read_only)
        journal = Journal(path)
        assert [r.data["number"] for r in journal.history.records] == [1]
        with pytest.raises(PreconditionFailed, match="Read-only"):
            journal.append(note(2))
        with pytest.raises(PreconditionFailed, match="Read-only"):
            Journal(tmp_path / "other.jsonl")
    journal.append(note(3))
    journal.close()
    assert numbers(path) == [1, 3]


def test_half_a_line_that_could_not_be_taken_back_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(note(1))
        with monkeypatch.context() as broken, pytest.raises(PreconditionFailed):

            def half(fd: int, data: bytes) -> None:
                os.write(fd, data[:7])
                raise OSError(5, "Input/output error")

            broken.setattr("coloctl.journalfile.write_all", half)
            broken.setattr("os.ftruncate", no_room_for_truncation)
            journal.append(note(2))
        journal.append(note(3))
    assert numbers(path) == [1, 3]


def no_room_for_truncation(*_: object) -> None:
    raise OSError(5, "Input/output error")


async def test_a_pair_that_is_down_has_nothing_unwritten(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        assert state.view().to_json()["unwritten"] == ""

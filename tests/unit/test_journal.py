"""The journal gives back what was acknowledged, whatever cut its writer short."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import stat
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import at_most
from support.fakeclock import FakeClock

from coloctl import journal
from coloctl.errors import PairBusy, PreconditionFailed
from coloctl.journal import Journal, replay
from coloctl.model import event
from coloctl.model.event import Kind, Record
from coloctl.model.protection import Protection

pytestmark = pytest.mark.unit

#: Files on a machine that others use too: no deadline per example.
FILES = at_most(60)
WORDS = st.text(max_size=12)
SOME = st.none() | st.integers() | WORDS | st.lists(WORDS, max_size=2)
JSON = st.dictionaries(WORDS, SOME, max_size=3)
RECORDS = st.builds(
    Record,
    kind=st.sampled_from(Kind),
    act=st.sampled_from(["", "protect", "failover"]),
    step=st.sampled_from(["", "fence", "promote"]),
    node=st.sampled_from(["", "a", "b"]),
    generation=st.none() | st.integers(0, 5),
    before=WORDS,
    fact=WORDS,
    after=WORDS,
    data=JSON,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web" / "journal.jsonl"


@pytest.fixture(autouse=True)
def folder(path: Path) -> None:
    path.parent.mkdir()


@pytest.fixture(autouse=True)
def disk_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsync does to a disk is the kernel's promise; here it only has to be asked for."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


NOON = datetime(2026, 11, 20, 12, 0, 0, 250, tzinfo=UTC)


def steady(path: Path, size_max: int = journal.SIZE_MAX) -> Journal:
    """A journal whose lines have the same length each time, so that examples can be replayed."""
    return Journal(path, clock=FakeClock(), wall=lambda: NOON, size_max=size_max)


def write(path: Path, *records: Record) -> list[Record]:
    with steady(path) as log:
        return [log.append(record) for record in records]


def test_records_come_back_numbered_and_dated(path: Path) -> None:
    clock = FakeClock(5.0)
    with Journal(path, clock=clock, wall=lambda: NOON) as log:
        first = log.append(Record(Kind.INTENT, act="failover", generation=0))
        clock.advance(1.5)
        second = log.append(Record(Kind.STATE, before=Protection.COLO, after=Protection.FAILOVER))
    assert (first.seq, first.mono_s, first.at) == (1, 5.0, "2026-11-20T12:00:00.000250+00:00")
    assert (second.seq, second.mono_s) == (2, 6.5)
    assert replay(path).records == (first, second)
    assert replay(path).torn == ""
    third = write(path, Record(Kind.NOTE))[0]
    assert third.seq == 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_file_is_an_empty_journal(path: Path) -> None:
    assert replay(path).records == ()
    assert replay(path).generation == 0


@FILES
@given(records=st.lists(RECORDS, max_size=8))
def test_any_record_round_trips(records: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        written = write(path, *records)
        assert list(replay(path).records) == written
        for record, stamped in zip(records, written, strict=True):
            assert stamped.data == record.data and stamped.kind is record.kind


@FILES
@given(records=st.lists(RECORDS, min_size=1, max_size=5), data=st.data())
def test_cut_anywhere_the_whole_lines_remain(records: list[Record], data: st.DataObject) -> None:
    """Whatever byte the crash came at: every whole line is there, and the next writer goes on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        written = write(path, *records)
        raw = path.read_bytes()
        cut = data.draw(st.integers(0, len(raw)))
        path.write_bytes(raw[:cut])
        whole = raw[:cut].count(b"\n")
        found = replay(path)
        assert list(found.records) == written[:whole]
        assert bool(found.torn) == (cut > 0 and raw[cut - 1] != ord("\n"))
        with Journal(path) as log:
            added = log.append(Record(Kind.NOTE, act="after"))
        again = replay(path)
        assert again.torn == ""
        assert list(again.records[:whole]) == written[:whole]
        assert again.records[-1] == added
        assert len(again.records) == whole + 1 + bool(found.torn)


@FILES
@given(records=st.lists(RECORDS, min_size=2, max_size=5), data=st.data())
def test_damage_before_the_end_is_named(records: list[Record], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        write(path, *records)
        lines = path.read_bytes().split(b"\n")
        number = data.draw(st.integers(1, len(records)))
        damaged = data.draw(st.sampled_from([b"", b"{", b"\0\0\0", b"[]", b'{"kind":"note"}']))
        lines[number - 1] = damaged
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(PreconditionFailed, match=f"damaged in line {number}:"):
            replay(path)
        with pytest.raises(PreconditionFailed):
            Journal(path)
        path.unlink()
        Journal(path).close()  # the failed attempt did not keep the lock


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"seq":2,"kind":"notes"}', "notes"),
        ('{"seq":2,"kind":"note","colour":1}', "no field colour"),
        ('{"seq":true,"kind":"note"}', "seq cannot be True"),
        ('{"seq":2,"kind":"note","data":[]}', r"data cannot be \[\]"),
        ('{"seq":1,"kind":"note"}', "cannot follow"),
        ('{"kind":"note"}', "needs the fields"),
    ],
)
def test_damage_is_explained(line: str, words: str, path: Path) -> None:
    path.write_text(f'{{"seq":1,"kind":"note"}}\n{line}\n')
    with pytest.raises(PreconditionFailed, match=words) as caught:
        replay(path)
    assert "line 2" in caught.value.message
    assert caught.value.hint


#: What a pair's life writes: acts, processes, generations, states.
LIFE = (
    Record(Kind.INTENT, act="start", generation=0, data={"protect": True}),
    Record(Kind.NOTE, node="a", data={"launched": "primary", "pid": 4711, "start-time": 99}),
    Record(Kind.STATE, act="start", generation=0, before="down", fact="guest-started", after="x"),
    Record(Kind.OUTCOME, act="failover", step="promote", node="b", generation=7),
)


def test_no_flipped_bit_is_another_act_pid_or_generation(path: Path) -> None:
    """Every single bit of a journal: the line is named, or nothing of its meaning has changed."""
    written = write(path, *LIFE)
    raw = path.read_bytes()
    kept = 0
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(raw)):
            place = bit // 8
            os.pwrite(file.fileno(), bytes([raw[place] ^ 1 << bit % 8]), place)
            try:
                found = list(replay(path).records)
            except PreconditionFailed as error:
                assert "damaged in line " in error.message
                assert str(path) in error.message
            else:
                kept += 1
                assert found == written
            os.pwrite(file.fileno(), raw[place : place + 1], place)
    assert kept < len(raw) // 100


@FILES
@given(st.lists(RECORDS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_bytes_that_are_overwritten_are_damage(records: list[Record], random: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        written = write(path, *records)
        raw = bytearray(path.read_bytes())
        begin = random.randrange(len(raw))
        length = random.randint(1, 20)
        raw[begin : begin + length] = random.randbytes(len(raw[begin : begin + length]))
        path.write_bytes(raw)
        try:
            found = list(replay(path).records)
        except PreconditionFailed:
            return
        assert found == written[: len(found)]
        assert len(found) >= len(written) - 1


def test_a_journal_that_an_earlier_coloctl_wrote_is_read_and_goes_on(path: Path) -> None:
    path.write_text('{"seq":1,"kind":"note","generation":3}\n{"seq":2,"kind":"note"}\n')
    with Journal(path) as log:
        log.append(Record(Kind.NOTE))
    assert [record.seq for record in replay(path).records] == [1, 2, 3]
    with path.open("a") as file:
        file.write('{"seq":4,"kind":"note"}\n')
    with pytest.raises(PreconditionFailed, match="line 4: it has no checksum"):
        replay(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"seq":2,"kind":"note","generation":' + "9" * 5000 + "}",
        '{"seq":2,"kind":"note","generation":' + "9" * 50 + "}",
        '{"seq":2,"kind":"note","generation":-1}',
        '{"seq":2,"kind":"note","mono_s":1e999}',
        '{"seq":2,"kind":"note","mono_s":NaN}',
        '{"seq":2,"kind":"note","data":' + '{"a":' * 50_000,
        '{"seq":2,"kind":"note","data":{"launched":"primary","pid":"x","start-time":1}}',
        '{"seq":2,"kind":"note","data":{"launched":[],"pid":1,"start-time":1}}',
        '{"seq":2,"kind":"note","data":{"launched":"primary"}}',
    ],
)
def test_an_old_line_that_no_coloctl_wrote_is_damage(line: str, path: Path) -> None:
    path.write_text(f'{{"seq":1,"kind":"note"}}\n{line}\n')
    with pytest.raises(PreconditionFailed, match="damaged in line 2") as caught:
        replay(path)
    assert len(caught.value.message) < 400


def test_a_second_writer_is_refused(path: Path) -> None:
    with Journal(path) as log:
        with pytest.raises(PairBusy):
            Journal(path)
        log.append(Record(Kind.NOTE))
    Journal(path).close()


def test_missing_folder_is_a_sentence(path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="cannot be opened"):
        Journal(path.parent / "missing" / "journal.jsonl")


def test_durable_records_are_on_disk_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []

    def fsync(fd: int) -> None:
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        synced.append(path.read_bytes())

    with Journal(path) as log:
        monkeypatch.setattr(os, "fsync", fsync)
        for kind in (Kind.INTENT, Kind.OUTCOME, Kind.STATE):
            log.append(Record(kind))
            assert json.loads(synced[-1].splitlines()[-1])["kind"] == kind
        assert len(synced) == 3
        log.append(Record(Kind.OBSERVATION))
        log.append(Record(Kind.NOTE))
        assert len(synced) == 3


def test_a_full_disk_leaves_no_half_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(path) as log:
        first = log.append(Record(Kind.NOTE))
        real, calls = os.write, itertools.count()

        def write_some(fd: int, data: bytes) -> int:
            if next(calls):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data[:20])

        monkeypatch.setattr(os, "write", write_some)
        with pytest.raises(PreconditionFailed, match="No space left"):
            log.append(Record(Kind.STATE, after="colo"))
        monkeypatch.undo()
        second = log.append(Record(Kind.NOTE))
    assert replay(path).records == (first, second)


def test_rotation_bounds_the_size_and_keeps_what_matters(path: Path) -> None:
    size_max = 4000
    with Journal(path, size_max=size_max) as log:
        log.append(Record(Kind.STATE, before="migrating", after="colo", generation=3))
        intent = log.append(Record(Kind.INTENT, act="failover"))
        closed = log.append(Record(Kind.INTENT, act="protect"))
        log.append(Record(Kind.OUTCOME, act="protect"))
        for number in range(300):
            last = log.append(Record(Kind.OBSERVATION, data={"number": number}))
            assert path.stat().st_size <= size_max
    found = replay(path)
    assert found.last_state is not None
    assert (found.last_state.after, found.generation) == ("colo", 3)
    assert found.open_intents == (intent,)
    assert closed not in found.records
    assert found.records[-1] == last
    old = replay(path.with_name("journal.jsonl.1"))
    assert old.records[-1].seq == next(r.seq for r in found.records if r.data) - 1
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "journal.jsonl", "journal.jsonl.1", "journal.jsonl.lock", "journal.jsonl.reserve",
    ]  # fmt: skip
    with Journal(path) as log:
        assert log.append(Record(Kind.NOTE)).seq == last.seq + 1


def test_a_rotation_without_room_goes_on_in_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal.journalfile, "create", no_room)
    with Journal(path, size_max=1300) as log:
        written = [log.append(Record(Kind.NOTE, data={"n": n})) for n in range(30)]
    assert list(replay(path).records) == written
    assert 1 <= caplog.text.count("not rotated") < 20


@FILES
@given(records=st.lists(RECORDS, max_size=30), size_max=st.integers(200, 3000))
def test_rotation_never_changes_what_is_decided(records: list[Record], size_max: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        with steady(path, size_max) as log:
            written = [log.append(record) for record in records]
        found = replay(path)
        assert found.last_state == event.last_state(written)
        assert found.open_intents == event.open_intents(written)
        assert found.generation == max((r.generation or 0 for r in written), default=0)
        assert list(found.records[-1:]) == written[-1:]


def test_open_intents() -> None:
    act, step = Record(Kind.INTENT, act="failover"), Record(Kind.INTENT, "failover", "promote")
    other = Record(Kind.INTENT, act="stop")
    done_step = Record(Kind.OUTCOME, "failover", "promote")
    done_act = Record(Kind.OUTCOME, act="failover")
    assert event.open_intents([act, step, other]) == (act, step, other)
    assert event.open_intents([act, step, done_step]) == (act,)
    assert event.open_intents([act, step, other, done_act]) == (other,)


@FILES
@given(records=st.lists(RECORDS, max_size=12))
def test_what_is_worth_keeping_is_enough(records: list[Record]) -> None:
    life = [replace(record, seq=seq) for seq, record in enumerate(records, start=1)]
    kept = event.worth_keeping(life)
    assert event.last_state(kept) == event.last_state(life)
    assert event.open_intents(kept) == event.open_intents(life)
    first, second = event.last_generation(kept), event.last_generation(life)
    assert (first and first.generation) == (second and second.generation)
    assert event.worth_keeping(kept) == kept


def test_an_intent_that_is_over_stays_over() -> None:
    life = [
        Record(Kind.INTENT, act="failover", generation=2, seq=1),
        Record(Kind.OUTCOME, act="failover", seq=2),
    ]
    kept = event.worth_keeping(life)
    assert event.open_intents(kept) == ()
    assert [record.generation for record in kept] == [2]


def test_a_journal_that_was_removed_is_made_anew_with_what_decides(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    folder.mkdir()
    path = folder / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(Record(Kind.NOTE, data={"number": 1}))
        journal.append(Record(Kind.STATE, before="down", fact="x", after="colo", generation=3))
        journal.append(Record(Kind.INTENT, act="failover"))
        assert not journal.see_to_place()
        shutil.rmtree(folder)
        journal.append(Record(Kind.OUTCOME, act="failover", data={"outcome": "done"}))
        kept = replay(path)
        assert kept.last_state is not None and kept.last_state.after == "colo"
        assert (kept.generation, kept.open_intents) == (3, ())
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(PairBusy):
            Journal(path)
        path.unlink()
        assert journal.see_to_place() and not journal.see_to_place()
        with pytest.raises(PairBusy):
            Journal(path)


def test_a_journal_whose_folder_is_to_go_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    folder.mkdir()
    with Journal(folder / "journal.jsonl") as journal:
        journal.leave()
        shutil.rmtree(folder)
        journal.append(Record(Kind.OUTCOME, act="stop", data={"outcome": "done"}))
        assert not journal.see_to_place() and not folder.exists()


def test_a_journal_that_another_supervisor_has_made_anew_is_not_taken_from_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mail"
    folder.mkdir()
    with Journal(folder / "journal.jsonl") as journal:
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        with Journal(folder / "journal.jsonl") as successor:
            successor.append(Record(Kind.INTENT, act="start"))
            with pytest.raises(PairBusy):
                journal.append(Record(Kind.INTENT, act="failover"))
            (intent,) = replay(folder / "journal.jsonl").open_intents
            assert intent.act == "start"

"""The history of failovers: durable, bounded, readable whatever happened to its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fakes import fake_state

from coloctl.errors import PreconditionFailed
from coloctl.journal import replay
from coloctl.model.timeline import FenceRecord, Timeline
from coloctl.supervisor import history
from coloctl.supervisor.history import History, Past

pytestmark = pytest.mark.unit


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / history.FILE
    assert history.read(path) == Past()
    for generation in (1, 2):
        History(path).append({"generation": generation, "steps": {"fenced": 1.5}})
    assert [one["generation"] for one in history.read(path).failovers] == [1, 2]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_oldest_go_first(tmp_path: Path) -> None:
    path = tmp_path / history.FILE
    kept = History(path, entries_max=3)
    for generation in range(10):
        kept.append({"generation": generation})
    assert [one["generation"] for one in history.read(path).failovers] == [7, 8, 9]


def test_a_torn_line_is_dropped_and_a_damaged_one_is_counted(tmp_path: Path) -> None:
    path = tmp_path / history.FILE
    path.write_bytes(b'{"generation": 1}\n\xff\x00not JSON\n[3]\n{"generation": 4}\n{"gener')
    past = history.read(path)
    assert [one["generation"] for one in past.failovers] == [1, 4]
    assert past.unreadable == 2
    History(path).append({"generation": 5})
    assert [one["generation"] for one in history.read(path).failovers] == [1, 4, 5]
    assert history.read(path).unreadable == 0


def test_a_failover_with_a_flipped_bit_is_counted_and_never_another(tmp_path: Path) -> None:
    path = tmp_path / history.FILE
    failover = {"generation": 3, "survivor": "b", "steps": {"fenced": 1.5}, "fault_ms": None}
    History(path).append(failover)
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        past = history.read(path)
        assert past.failovers in ((), (failover,))
        assert len(past.failovers) + past.unreadable <= 2


@pytest.mark.parametrize(
    "line",
    [
        b'{"generation": ' + b"9" * 5000 + b"}",
        b'{"generation": "many"}',
        b'{"generation": ' + b"9" * 40 + b"}",
        b'{"steps": [1]}',
        b'{"steps": {"fenced": "now"}}',
        b'{"steps": {"fenced": NaN}}',
        b'{"survivor": {}}',
        b'{"at": 5}',
        b'{"a":' * 50_000,
    ],
)
def test_a_failover_that_nobody_can_show_is_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / history.FILE
    path.write_bytes(line + b"\n")
    assert history.read(path) == Past((), 1)


def test_a_history_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="cannot be written"):
        History(tmp_path / "none" / history.FILE).append({})


async def _remembered(tmp_path: Path, *, blocked: bool) -> Path:
    async with fake_state(tmp_path) as state:
        path = state.ground.folder / history.FILE
        if blocked:
            path.mkdir()
        state.remember_failover(Timeline("b", "a", generation=1, fence=FenceRecord("a", "kill")))
        state.remember_failover(Timeline("b", "a", generation=2))
        return path


async def _read(tmp_path: Path, *, blocked: bool) -> tuple[Path, list[object]]:
    path = await _remembered(tmp_path, blocked=blocked)
    notes = [record.data for record in replay(path.parent / "journal.jsonl").records]
    return path, list(notes)


async def test_a_failover_is_remembered_with_its_own_fence(tmp_path: Path) -> None:
    path, _ = await _read(tmp_path, blocked=False)
    first, second = history.read(path).failovers
    assert (first["generation"], first["fence"]) == (1, {"node": "a", "method": "kill"})
    assert second == Timeline("b", "a", generation=2).to_json()


async def test_no_failover_fails_for_the_sake_of_its_history(tmp_path: Path) -> None:
    _, notes = await _read(tmp_path, blocked=True)
    assert sum("history-not-kept" in str(note) for note in notes) == 2

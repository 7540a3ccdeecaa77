"""Keep the append-only journal of one pair: JSON lines with checksums that survive the supervisor.

Called by `control.daemon.serve`, which opens it, by `supervisor.state`, which appends, and by
`supervisor.leftovers` and `chaos.evidence.gather`, which read; its files are those of
`journalfile`, its records those of `model.event`.

Invariant: a durable record is on disk, file and folder entry, before `Journal.append` returns. One
writer at a time. A line that a crash cut short is the last one, was never acknowledged, and is
dropped; damage anywhere else is reported and never skipped. The file and its predecessor stay
within twice the size limit, and what a restarted supervisor decides by is always in the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from coloctl import journalfile, paths
from coloctl.clock import CLOCK, Clock
from coloctl.errors import PreconditionFailed
from coloctl.model import event
from coloctl.model.event import Kind, Record
from coloctl.reserve import Reserve
from coloctl.sealed import seal, unseal

log = logging.getLogger(__name__)

#: About 40,000 records; a state folder in /run lives in memory.
SIZE_MAX = 8 << 20


def wall_clock() -> datetime:
    """Return the time of day in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Replay:
    """The content of a journal file."""

    records: tuple[Record, ...]
    torn: str = ""  #: a sentence about the unfinished last line, when there is one
    size: int = 0  #: bytes up to the end of the last whole line

    @property
    def last_state(self) -> Record | None:
        """The last record of the pair's state."""
        return event.last_state(self.records)

    @property
    def open_intents(self) -> tuple[Record, ...]:
        """The intents without a result."""
        return event.open_intents(self.records)

    @property
    def generation(self) -> int:
        """The highest that was recorded, 0 where none was."""
        record = event.last_generation(self.records)
        return (record.generation or 0) if record else 0


def replay(path: Path) -> Replay:
    """Read every whole record of the file at ``path``, oldest first; no file is an empty journal.

    Raises `PreconditionFailed` naming the line when anything but an unfinished last line is wrong.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Replay(())
    except OSError as error:
        raise PreconditionFailed(f"The journal {path} cannot be read: {error.strerror}.") from None
    whole, newline, rest = raw.rpartition(b"\n")
    torn = f"The last line of {path} was cut short after {len(rest)} bytes." if rest else ""
    lines = whole.split(b"\n") if newline else []
    records: list[Record] = []
    sealed = False
    for number, line in enumerate(lines, start=1):
        with _damage(path, number):
            record, sealed = _parse(line, records[-1].seq if records else 0, sealed)
            records.append(record)
    with _damage(path, len(lines) + 1):
        _require_cut_short(rest)
    return Replay(tuple(records), torn, len(whole) + len(newline))


@contextlib.contextmanager
def _damage(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise PreconditionFailed(
            f"The journal {path} is damaged in line {number}: {error}.",
            hint="move the file away and keep it for a report; `coloctl start SPEC --adopt` then "
            "takes over what runs, as it is found",
        ) from None


def _parse(line: bytes, seq_before: int, sealed: bool) -> tuple[Record, bool]:
    """Parse the record of a line; returns it, and whether the line has a checksum.

    Lines without a checksum, of an earlier coloctl, stand before all others. Raises ValueError.
    """
    found = unseal(line)
    if sealed and not found.sealed:
        raise ValueError("it has no checksum")
    record = Record.from_json(found.document)
    if record.seq <= seq_before:
        raise ValueError(f"record {record.seq} cannot follow record {seq_before}")
    return record, found.sealed


def _require_cut_short(rest: bytes) -> None:
    """Refuse a rest that is whole: a line that was cut short has no byte after its end.

    Where one is, it was the newline.
    """
    try:
        whole = unseal(rest[:-1]).sealed
    except ValueError:
        return
    if whole:
        raise ValueError("its end was overwritten")


class Journal:
    """The journal at ``path``, open for appending by this process alone.

    ``history`` is what was in it. Raises `PairBusy` when another process has it open, and what
    `replay` raises. A journal with records is opened also where it cannot be written: then `append`
    raises until it can.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock = CLOCK,
        wall: Callable[[], datetime] = wall_clock,
        size_max: int = SIZE_MAX,
    ) -> None:
        self.path = path
        self._clock, self._wall = clock, wall
        self._size_max = self._rotate_at = size_max
        self._left = False
        self._lock = journalfile.locked(path)
        try:
            self.history = replay(path)
            self._size = self.history.size
            self._file, self._torn = self._first_opened(), False
            self._reserve = Reserve(journalfile.beside(path, ".reserve"))
        except BaseException:
            os.close(self._lock)
            raise
        self._seq = self.history.records[-1].seq if self.history.records else 0
        self._vital = list(event.worth_keeping(self.history.records))
        if self.history.torn:
            with contextlib.suppress(PreconditionFailed):  # a note for people
                self.append(Record(Kind.NOTE, data={"dropped": self.history.torn}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal; it is free for another process then."""
        if self._lock >= 0:
            if self._file >= 0:
                os.close(self._file)
            self._reserve.close()
            os.close(self._lock)
            self._file = self._lock = -1

    def append(self, record: Record) -> Record:
        """Write ``record`` with its number and times; it is on disk if it is durable.

        A record that was `stamped` before keeps its times. Raises `PreconditionFailed` when it
        cannot be written; the journal then holds no part of it.
        """
        stamped = replace(record if record.at else self.stamped(record), seq=self._seq + 1)
        line = seal(stamped.to_json())
        if not self._in_place():
            self._put_back()
        if record.durable:
            self._reserve.see_to_room()
        if self._size + len(line) > self._rotate_at:
            self._rotate()
        self._write(line, sync=record.durable)
        self._seq = stamped.seq
        if record.durable or record.generation is not None:
            self._vital = list(event.worth_keeping([*self._vital, stamped]))
        return stamped

    def stamped(self, record: Record) -> Record:
        """Return ``record`` with the present time."""
        at, mono_s = self._wall().isoformat(timespec="microseconds"), self._clock.now()
        return replace(record, at=at, mono_s=round(mono_s, 6))

    def see_to_place(self) -> bool:
        """Create file, lock and folder again where they were removed; returns whether that was
        needed.

        What a restarted supervisor decides by is in the new file. Raises `PreconditionFailed` when
        it cannot be made, and `PairBusy` when another supervisor has made one meanwhile.
        """
        if self._in_place():
            return False
        self._put_back()
        return True

    def leave(self) -> None:
        """Create nothing again from here on: the folder is about to be removed for good."""
        self._left = True

    def _in_place(self) -> bool:
        """Return whether the file under this name is the one that is written, or could not be
        opened yet.
        """
        return self._left or self._file < 0 or journalfile.same(self.path, self._file)

    def _put_back(self) -> None:
        paths.make_private(self.path.parent)
        kept = journalfile.same(journalfile.beside(self.path, ".lock"), self._lock)
        fresh = self._lock if kept else journalfile.locked(self.path)
        data = b"".join(seal(record.to_json()) for record in self._vital)
        try:
            with contextlib.suppress(FileNotFoundError):  # a file of another process is kept
                self.path.replace(journalfile.beside(self.path, ".other"))
            file = journalfile.create(self.path, data)
            journalfile.sync_folder(self.path.parent)
        except OSError as error:
            if fresh != self._lock:
                os.close(fresh)
            raise PreconditionFailed(
                f"The journal {self.path} was removed and cannot be made again: {error.strerror}.",
                hint="check the folder and its permissions",
            ) from None
        if fresh != self._lock:
            os.close(self._lock)
        os.close(self._file)
        self._reserve.close()
        self._lock, self._file, self._size = fresh, file, len(data)
        self._reserve = Reserve(journalfile.beside(self.path, ".reserve"))
        log.warning("The journal %s was removed; it is made again", self.path)

    def _write(self, line: bytes, *, sync: bool) -> None:
        if self._file < 0:
            self._file = journalfile.opened(self.path, self._size)
        try:
            if self._torn:
                os.ftruncate(self._file, self._size)
            self._torn = True
            journalfile.write_all(self._file, line)
            if sync:
                os.fsync(self._file)
            self._torn = False
        except OSError as error:
            with contextlib.suppress(OSError):  # then it is done before the next line
                os.ftruncate(self._file, self._size)
                self._torn = False
            raise PreconditionFailed(
                f"The journal {self.path} cannot be written: {error.strerror}.",
                hint="free some space, or check the disk",
            ) from None
        self._size += len(line)

    def _first_opened(self) -> int:
        """Open the file for appending; -1 where it holds records and cannot be written now."""
        try:
            return journalfile.opened(self.path, self._size)
        except PreconditionFailed as error:
            if not self.history.records:
                raise
            log.error("%s", error.message)
            return -1

    def _rotate(self) -> None:
        """Rotate: the file starts again with what is vital; the old one has the suffix ``.1``.

        At every moment there is a whole journal at ``path``. Where there is no room for two, the
        old file stays in use and grows by a quarter before the next try.
        """
        fresh, old = journalfile.beside(self.path, ".new"), journalfile.beside(self.path, ".1")
        data = b"".join(seal(record.to_json()) for record in self._vital)
        file = -1
        try:
            file = journalfile.create(fresh, data)
            old.unlink(missing_ok=True)
            os.link(self.path, old)
            fresh.replace(self.path)
        except OSError as error:
            log.warning("The journal %s is not rotated: %s", self.path, error.strerror)
            self._rotate_at = self._size + self._size_max // 4
            if file >= 0:
                os.close(file)
            return
        os.close(self._file)
        self._file, self._size = file, len(data)
        self._rotate_at = max(self._size_max, 2 * len(data))
        journalfile.sync_folder(self.path.parent)

"""Every failover of a pair, one JSON line each, kept apart from the journal, which rotates.

Each line has a checksum (`coloctl.sealed`); those of an earlier coloctl have none and stand first.

Promises: a line is on disk before `History.append` returns; the file has a bound, beyond which the
oldest lines go; a line that was cut short is dropped, and one that cannot be read is counted and
passed over: nobody decides by this file, people read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl.host import durable
from coloctl.sealed import NUMBER_MAX, seal, unseal

FILE = "history.jsonl"
#: Failovers kept: one a day for more than a year; about 500 bytes each.
ENTRIES_MAX = 500
#: Far beyond what so many entries take.
BYTES_MAX = 16 << 20

#: Keys of a failover whose values are numbers, and those whose values are text.
NUMBERS = frozenset({"generation", "began_s", "fault_ms"})
TEXTS = frozenset({"survivor", "lost", "at", "cause", "role_before", "failed"})


@dataclass(frozen=True)
class Past:
    """What a history file holds, oldest first."""

    failovers: tuple[Mapping[str, Any], ...] = ()
    unreadable: int = 0  #: lines passed over


def read(path: Path) -> Past:
    """What is at ``path``; no file is an empty history. Raises `PreconditionFailed`."""
    raw = durable.read(path, BYTES_MAX) or b""
    found = [_parsed(line) for line in raw.split(b"\n")[:-1]]
    whole = tuple(one for one in found if one is not None)
    return Past(whole, len(found) - len(whole))


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    """What the line holds, or None for damage: also a value of a kind that no reader expects."""
    try:
        document = unseal(line).document
    except ValueError:
        return None
    return document if all(_fits(name, value) for name, value in document.items()) else None


def _fits(name: str, value: object) -> bool:
    if name == "steps":
        return isinstance(value, dict) and all(map(_is_number, value.values()))
    if name in NUMBERS:
        return value is None or _is_number(value)
    return isinstance(value, str | bool | None) or name not in TEXTS


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -NUMBER_MAX < value < NUMBER_MAX  # type: ignore[operator]


class History:
    """The file at ``path``, written by one supervisor."""

    def __init__(self, path: Path, *, entries_max: int = ENTRIES_MAX) -> None:
        self.path = path
        self._entries_max = entries_max

    def append(self, failover: Mapping[str, Any]) -> None:
        """``failover`` is on disk, behind those before it; raises `PreconditionFailed`."""
        kept = read(self.path).failovers[1 - self._entries_max :]
        durable.replace(self.path, b"".join(map(seal, (*kept, failover))))
        self.path.chmod(0o600)

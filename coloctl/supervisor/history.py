"""Keep every failover of a pair, one JSON line each, apart from the journal, which rotates.

Written by `supervisor.state` through `host.durable`; read by `control.service`, and by
`cli.verbs.history` without a supervisor. Each line has a checksum (`coloctl.sealed`); those of an
earlier coloctl have none and stand first.

Invariant: a line is on disk before `History.append` returns, and the file has a bound, beyond which
the oldest lines go. A line that was cut short is dropped; one that cannot be read is counted and
passed over, because no decision rests on this file: people read it.
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
#: Far more than so many entries take.
BYTES_MAX = 16 << 20

#: Keys of a failover whose values are numbers, and those whose values are text.
NUMBERS = frozenset({"generation", "began_s", "fault_ms"})
TEXTS = frozenset({"survivor", "lost", "at", "cause", "role_before", "failed"})


@dataclass(frozen=True)
class Past:
    """The failovers of a history file, oldest first."""

    failovers: tuple[Mapping[str, Any], ...] = ()
    unreadable: int = 0  #: lines passed over

    def to_json(self) -> dict[str, Any]:
        """Return the document of `query-history`; `model.answers.PastFailovers` reads it."""
        return {"failovers": list(self.failovers), "unreadable": self.unreadable}


def read(path: Path) -> Past:
    """Read the history at ``path``; no file is an empty history. Raises `PreconditionFailed`."""
    raw = durable.read(path, BYTES_MAX) or b""
    found = [_parsed(line) for line in raw.split(b"\n")[:-1]]
    whole = tuple(one for one in found if one is not None)
    return Past(whole, len(found) - len(whole))


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    """Return the failover of a line, or None for damage.

    Also for a value of a kind not expected.
    """
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
        """Write ``failover`` to disk, after those before it; raises `PreconditionFailed`."""
        kept = read(self.path).failovers[1 - self._entries_max :]
        durable.replace(self.path, b"".join(map(seal, (*kept, failover))))
        self.path.chmod(0o600)

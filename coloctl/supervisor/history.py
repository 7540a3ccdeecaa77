"""Every failover of a pair, one JSON line each, kept apart from the journal, which rotates.

Promises: a line is on disk before `History.append` returns; the file has a bound, beyond which the
oldest lines go; a line that was cut short is dropped, and one that cannot be read is counted and
passed over: nobody decides by this file, people read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl.errors import PreconditionFailed
from coloctl.host import durable

FILE = "history.jsonl"
#: Failovers kept: one a day for more than a year; about 500 bytes each.
ENTRIES_MAX = 500


@dataclass(frozen=True)
class Past:
    """What a history file holds, oldest first."""

    failovers: tuple[Mapping[str, Any], ...] = ()
    unreadable: int = 0  #: lines passed over


def read(path: Path) -> Past:
    """What is at ``path``; no file is an empty history. Raises `PreconditionFailed`."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Past()
    except OSError as error:
        raise PreconditionFailed(f"The history {path} cannot be read: {error.strerror}.") from None
    found = [_parsed(line) for line in raw.split(b"\n")[:-1]]
    whole = tuple(one for one in found if one is not None)
    return Past(whole, len(found) - len(whole))


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class History:
    """The file at ``path``, written by one supervisor."""

    def __init__(self, path: Path, *, entries_max: int = ENTRIES_MAX) -> None:
        self.path = path
        self._entries_max = entries_max

    def append(self, failover: Mapping[str, Any]) -> None:
        """``failover`` is on disk, behind those before it; raises `PreconditionFailed`."""
        kept = read(self.path).failovers[1 - self._entries_max :]
        durable.replace(self.path, b"".join(map(_line, (*kept, failover))))
        self.path.chmod(0o600)


def _line(failover: Mapping[str, Any]) -> bytes:
    return json.dumps(failover, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

"""What clients did and saw, as JSON lines in monotonic time; faults and judges only read it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How an operation stands. ``info`` means that nobody knows whether it happened."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    INFO = "info"


@dataclass(frozen=True)
class Op:
    """One line of a history: ``client`` sent record ``n`` (invoke), or learnt what became of it.

    ``at_s`` is CLOCK_MONOTONIC of the machine, so that lines of different processes compare.
    ``n`` is -1 for what concerns the connection itself; ``note`` then says what. ``f``, ``key`` and
    ``value`` say what was done to what, where one kind of work does several things.
    """

    at_s: float
    client: int
    outcome: Outcome
    n: int
    note: str = ""
    f: str = ""
    key: str = ""
    value: Any = None

    def line(self) -> str:
        said = {name: value for name, value in asdict(self).items() if value not in ("", None)}
        return json.dumps(said, separators=(",", ":"))


def parse(lines: Iterable[str]) -> Iterator[Op]:
    """The operations of a history; raises `ValueError` for a line that is none."""
    for line in lines:
        if line.strip():
            fields = json.loads(line)
            yield Op(**{**fields, "outcome": Outcome(fields["outcome"])})

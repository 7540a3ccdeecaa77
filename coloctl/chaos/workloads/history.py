"""Define the history of clients: what they did and saw, as JSON lines in monotonic time.

Called by `chaos.workloads.recorder`, which writes it, and by faults and `chaos.checks`, which only
read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """The state of an operation. ``info`` means that it is unknown whether it happened."""

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
        """Return the operation as one line of JSON."""
        said = {name: value for name, value in asdict(self).items() if value not in ("", None)}
        return json.dumps(said, separators=(",", ":"))


def parse(lines: Iterable[str]) -> Iterator[Op]:
    """Parse the operations of a history; raises `ValueError` for a line that is none."""
    for line in lines:
        if line.strip():
            fields = json.loads(line)
            yield Op(**{**fields, "outcome": Outcome(fields["outcome"])})

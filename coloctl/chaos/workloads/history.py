"""Define the history of clients: what they did and saw, as JSON lines in monotonic time.

Called by `chaos.workloads.client`, which writes it, and by `chaos.checks`, `chaos.report` and
`bench`, which only read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class OpStatus(StrEnum):
    """The status of an operation. ``info`` means that it is unknown whether it happened."""

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
    outcome: OpStatus
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
            yield Op(**{**fields, "outcome": OpStatus(fields["outcome"])})


@dataclass(frozen=True)
class ClientOperation:
    """One operation: its invocation, and its answer if it has one.

    Note the difference: an `Op` is one line of a history, this is two of them.
    """

    begun: Op
    ended: Op | None

    @property
    def status(self) -> OpStatus:
        """Its status after the answer; ``info`` without one."""
        return OpStatus.INFO if self.ended is None else self.ended.outcome


def operations(history: Iterable[Op]) -> list[ClientOperation]:
    """Pair each invocation with its answer, in the order of the answers.

    Operations without an answer come last. What concerns a connection alone (``n`` -1) is no
    operation, nor is a second answer.
    """
    begun: dict[tuple[int, int], Op] = {}
    found = []
    for op in sorted(history, key=lambda op: op.at_s):
        if op.n < 0:
            continue
        if op.outcome is OpStatus.INVOKE:
            begun[op.client, op.n] = op
        elif (invoked := begun.pop((op.client, op.n), None)) is not None:
            found.append(ClientOperation(invoked, op))
    return found + [ClientOperation(op, None) for op in begun.values()]

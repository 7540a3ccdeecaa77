"""Check that registers which many clients use behaved as one guest with one order of events.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; calls `chaos.checks.linear` to
search for the order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from pydantic import Field

from coloctl.chaos.checks.linear import NEVER, Operation, OperationKind, SearchResult, search
from coloctl.chaos.checks.verdict import (
    Sides,
    Verdict,
    check,
    count,
    each_work,
    invalid,
    unknown,
    valid,
    when,
)
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, OpStatus

#: The client of the last read, after all others, and its moment.
READ_BACK, LAST_S = -1, math.nextafter(NEVER, 0)


class Registers(Sides):
    """``states_max`` is how many states the search may reach per key before it gives up."""

    states_max: int = Field(default=200_000, ge=1)


@check(Registers)
def linearizable(evidence: Evidence, params: Registers) -> Verdict:
    """Require that every register behaved as if its operations had happened one after the other,
    each between its invocation and its answer.
    """

    def check_one(work: WorkloadRecord) -> Verdict:
        return _registers(evidence, work, params)

    return each_work(evidence, ("redis-registers",), check_one, params)


def operations_of(
    history: Sequence[Op], kept: Mapping[str, Any] | None
) -> dict[str, list[Operation]]:
    """Return the operations on each key; what the guest holds in the end is a last read."""
    called: dict[tuple[int, int], Op] = {}
    found: dict[str, list[Operation]] = defaultdict(list)
    for op in history:
        if op.n < 0:
            continue
        if op.outcome is OpStatus.INVOKE:
            called[op.client, op.n] = op
        elif begun := called.pop((op.client, op.n), None):
            found[begun.key].extend(_operation(begun, op))
    for op in called.values():
        found[op.key].extend(_operation(op, None))
    for key in found if kept is not None else ():
        value = _frozen((kept or {}).get(key))
        found[key].append(Operation(READ_BACK, OperationKind.READ, LAST_S, LAST_S, value))
    return dict(found)


def _operation(begun: Op, ended: Op | None) -> list[Operation]:
    """Return the operation; none where it certainly had no effect and no answer."""
    outcome = OpStatus.INFO if ended is None else ended.outcome
    answered_s = ended.at_s if ended is not None and outcome is not OpStatus.INFO else NEVER
    failed = outcome is OpStatus.FAIL
    match begun.f:
        case "read" if ended is not None and outcome is OpStatus.OK:
            kind, value, old = OperationKind.READ, _frozen(ended.value), None
        case "write" if not failed:
            kind, value, old = OperationKind.WRITE, _frozen(begun.value), None
        case "cas":
            old, value = map(_frozen, begun.value)
            kind = OperationKind.CAS_FAILED if failed else OperationKind.CAS
        case _:
            return []
    return [Operation(begun.client, kind, begun.at_s, answered_s, value, old)]


def _frozen(value: Any) -> Hashable:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _registers(evidence: Evidence, work: WorkloadRecord, params: Registers) -> Verdict:
    operations = operations_of(work.history, work.kept)
    found = {key: search(operations[key], None, params.states_max) for key in sorted(operations)}
    broken = [key for key, one in found.items() if one.linearizable is False]
    if broken:
        examples = [line for key in broken for line in _example(evidence, key, found[key])]
        because = f"{count(len(broken), 'key')} did not behave as one register: {broken[0]}"
        return invalid(because, examples)
    if given_up := [key for key, one in found.items() if one.linearizable is None]:
        because = f"the search for an order of {given_up[0]} was given up"
        return unknown(f"{because} after {params.states_max} states")
    if work.kept is None:
        return unknown("the guest did not answer what the registers hold in the end")
    if not operations:
        return unknown("there was no operation on any register")
    number = sum(map(len, operations.values()))
    return valid(f"{number} operations on {count(len(operations), 'key')} have an order")


def _example(evidence: Evidence, key: str, found: SearchResult) -> list[str]:
    """Describe how far an order goes, and what does not fit after it."""
    head = f"{key}: after {found.placed} operations in their best order it holds {found.value!r};"
    return [
        f"{head} none of the next fits:",
        *(f"{key}: {one.sentence()}, {_span(evidence, one)}" for one in found.stuck),
    ]


def _span(evidence: Evidence, one: Operation) -> str:
    if one.client == READ_BACK:
        return "read back in the end"
    return f"between {when(evidence, one.called_s)} and {when(evidence, one.answered_s)}"

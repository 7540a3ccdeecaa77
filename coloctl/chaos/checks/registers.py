"""Check that registers which many clients use behaved as one guest with one order of events.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; calls `chaos.checks.linear` to
search for the order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from pydantic import Field

from coloctl.chaos.checks.linear import (
    NEVER,
    STATES_MAX,
    Operation,
    OperationKind,
    SearchResult,
    search,
)
from coloctl.chaos.checks.sides import Sides, each_work
from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid, when
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import ClientOperation, OpStatus, operations

#: The client of the last read, after all others, and its moment.
READ_BACK, LAST_S = -1, math.nextafter(NEVER, 0)


class Registers(Sides):
    """``states_max`` is how many states the search may reach per key before it gives up."""

    states_max: int = Field(default=STATES_MAX, ge=1)


@check(Registers)
def linearizable(evidence: Evidence, params: Registers) -> Verdict:
    """Require that every register behaved as if its operations had happened one after the other,
    each between its invocation and its answer.
    """

    def check_one(work: WorkloadRecord) -> Verdict:
        return _registers(evidence, work, params)

    return each_work(evidence, ("redis-registers",), check_one, params)


def _by_key(work: WorkloadRecord) -> dict[str, list[Operation]]:
    """Return the operations on each key; what the guest holds in the end is a last read."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for one in operations(work.history):
        found[one.begun.key] += _operation(one)
    if work.kept is not None:
        for key, on_key in found.items():
            value = _frozen(work.kept.get(key))
            on_key.append(Operation(READ_BACK, OperationKind.READ, LAST_S, LAST_S, value))
    return found


def _operation(one: ClientOperation) -> list[Operation]:
    """Return the operation; none where it certainly had no effect and no answer."""
    begun, ended, status = one.begun, one.ended, one.status
    answered_s = NEVER if ended is None or status is OpStatus.INFO else ended.at_s
    failed = status is OpStatus.FAIL
    match begun.f:
        case "read" if ended is not None and status is OpStatus.OK:
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
    by_key = _by_key(work)
    found = {key: search(by_key[key], params.states_max) for key in sorted(by_key)}
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
    if not by_key:
        return unknown("there was no operation on any register")
    number = sum(map(len, by_key.values()))
    return valid(f"{number} operations on {count(len(by_key), 'key')} have an order")


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

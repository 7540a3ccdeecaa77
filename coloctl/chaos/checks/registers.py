"""Registers that many clients write, read and compare: one guest, one order of events."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from pydantic import Field

from coloctl.chaos.checks.check import Check, Sides, count, each_work, invalid, unknown, valid, when
from coloctl.chaos.checks.linear import NEVER, Act, Found, Kind, search
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, Outcome

CHECK = "linearizable"
#: Whoever asks at the end, after all clients.
READ_BACK, LAST_S = -1, math.nextafter(NEVER, 0)


class Registers(Sides):
    """``states_max`` is how many states the search may see per key before it gives up."""

    states_max: int = Field(default=200_000, ge=1)


def linearizable(evidence: Evidence, params: Registers) -> Verdict:
    """Every key of every workload could have been one register, in one order."""
    return each_work(
        CHECK,
        evidence,
        ("redis-registers",),
        lambda work: _registers(evidence, work, params),
        params,
    )


def acts_of(history: Sequence[Op], kept: Mapping[str, Any] | None) -> dict[str, list[Act]]:
    """Per key, what was done to it; what the guest holds in the end is a last read."""
    called: dict[tuple[int, int], Op] = {}
    acts: dict[str, list[Act]] = defaultdict(list)
    for op in history:
        if op.n < 0:
            continue
        if op.outcome is Outcome.INVOKE:
            called[op.client, op.n] = op
        elif begun := called.pop((op.client, op.n), None):
            acts[begun.key].extend(_act(begun, op))
    for op in called.values():
        acts[op.key].extend(_act(op, None))
    for key in acts if kept is not None else ():
        value = _frozen((kept or {}).get(key))
        acts[key].append(Act(READ_BACK, Kind.READ, LAST_S, LAST_S, value))
    return dict(acts)


def _act(begun: Op, ended: Op | None) -> list[Act]:
    """The operation; none where it surely did nothing and told nothing."""
    outcome = Outcome.INFO if ended is None else ended.outcome
    answered_s = ended.at_s if ended is not None and outcome is not Outcome.INFO else NEVER
    failed = outcome is Outcome.FAIL
    match begun.f:
        case "read" if ended is not None and outcome is Outcome.OK:
            kind, value, old = Kind.READ, _frozen(ended.value), None
        case "write" if not failed:
            kind, value, old = Kind.WRITE, _frozen(begun.value), None
        case "cas":
            old, value = map(_frozen, begun.value)
            kind = Kind.CAS_FAILED if failed else Kind.CAS
        case _:
            return []
    return [Act(begun.client, kind, begun.at_s, answered_s, value, old)]


def _frozen(value: Any) -> Hashable:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _registers(evidence: Evidence, work: WorkloadRecord, params: Registers) -> Verdict:
    acts = acts_of(work.history, work.kept)
    found = {key: search(acts[key], None, params.states_max) for key in sorted(acts)}
    broken = [key for key, one in found.items() if one.linearizable is False]
    if broken:
        examples = [line for key in broken for line in _example(evidence, key, found[key])]
        because = f"{count(len(broken), 'key')} did not behave as one register: {broken[0]}"
        return invalid(CHECK, because, examples)
    if given_up := [key for key, one in found.items() if one.linearizable is None]:
        because = f"the search for an order of {given_up[0]} was given up"
        return unknown(CHECK, f"{because} after {params.states_max} states")
    if work.kept is None:
        return unknown(CHECK, "nobody could ask what the registers hold in the end")
    if not acts:
        return unknown(CHECK, "nothing was done to any register")
    return valid(
        CHECK,
        f"{sum(map(len, acts.values()))} operations on {count(len(acts), 'key')} have an order",
    )


def _example(evidence: Evidence, key: str, found: Found) -> list[str]:
    """How far an order goes, and what fits nowhere behind it."""
    head = f"{key}: after {found.placed} operations in their best order it holds {found.value!r};"
    return [
        f"{head} none of the next fits:",
        *(f"{key}: {act.sentence()}, {_span(evidence, act)}" for act in found.stuck),
    ]


def _span(evidence: Evidence, act: Act) -> str:
    if act.client == READ_BACK:
        return "read back in the end"
    return f"between {when(evidence, act.called_s)} and {when(evidence, act.answered_s)}"


CHECKS = {
    CHECK: Check(
        "Every register behaved as if its operations had happened one after the other, each "
        "between its invocation and its answer.",
        linearizable,
        Registers,
    )
}

"""Search for an order of operations in which one register behaves as its clients saw it; pure.

A history of a register is linearizable if every operation can be given one moment between its
invocation and its answer so that, in the order of these moments, each answer is that of a register.
Example: a read that began after the write of 5 had been answered must not return an older value.
The search takes one operation after the other as the next (Wing and Gong), and remembers which sets
of operations, with which value, led nowhere (Lowe). It is exact, unless it exceeds its bound.
Called by `chaos.checks.registers` for each key of a workload.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

#: An operation whose end is not known may take effect at any later time, or never.
NEVER: Final = math.inf
#: How many states a search may reach before it gives up.
STATES_MAX = 200_000


class OperationKind(Enum):
    """An operation on the register, and what it shows of its value."""

    READ = "read"  #: of ``value``
    WRITE = "write"  #: of ``value``
    CAS = "cas"  #: from ``old`` to ``value``: it was ``old``
    CAS_FAILED = "failed cas"  #: it was not ``old``


@dataclass(frozen=True)
class Operation:
    """One operation on one register, between two moments."""

    client: int
    kind: OperationKind
    called_s: float
    answered_s: float
    value: Hashable = None
    old: Hashable = None

    @property
    def open(self) -> bool:
        """True if it is not known whether it happened."""
        return self.answered_s == NEVER

    def after(self, value: Hashable) -> tuple[bool, Hashable]:
        """Return whether it fits a register that holds ``value``, and what that holds then."""
        match self.kind:
            case OperationKind.READ:
                return self.value == value, value
            case OperationKind.WRITE:
                return True, self.value
            case OperationKind.CAS:
                return self.old == value, self.value
            case OperationKind.CAS_FAILED:
                return self.old != value, value

    def sentence(self) -> str:
        """Describe the operation for people, with its client."""
        what = f"{self.kind.value} of {self.value!r}"
        if self.kind is OperationKind.CAS:
            what = f"cas from {self.old!r} to {self.value!r}"
        elif self.kind is OperationKind.CAS_FAILED:
            what = f"cas that found something else than {self.old!r}"
        return f"client {self.client}: {what}"


@dataclass(frozen=True)
class SearchResult:
    """``linearizable`` is None when the search was given up after so many states.

    ``placed`` is how many answered operations the longest order holds, ``value`` what the register
    held then, and ``stuck`` those that could have come next and do not fit.
    """

    linearizable: bool | None
    states: int
    placed: int = 0
    value: Hashable = None
    stuck: tuple[Operation, ...] = ()


#: What was placed, and the value: all answered operations before the first number, those of the
#: first set of bits counted from there, and the open operations of the second set of bits.
_State = tuple[int, int, int, Hashable]


def search(operations: Sequence[Operation], states_max: int = STATES_MAX) -> SearchResult:
    """Search for an order; exact unless more than ``states_max`` states were seen.

    The register holds None in the beginning.
    """
    by_call = sorted(operations, key=lambda operation: operation.called_s)
    answered = [operation for operation in by_call if not operation.open]
    opened = [
        operation
        for operation in by_call
        if operation.open and operation.kind in (OperationKind.WRITE, OperationKind.CAS)
    ]
    start: _State = (0, 0, 0, None)
    seen, stack, best = {start}, [start], (0, start)
    while stack:
        state = stack.pop()
        placed = state[0] + state[1].bit_count()
        if placed == len(answered):
            return SearchResult(True, len(seen), placed, state[3])
        best = max(best, (placed, state), key=lambda one: one[0])
        for after in _next(state, answered, opened):
            if after not in seen:
                seen.add(after)
                stack.append(after)
        if len(seen) > states_max:
            return SearchResult(None, len(seen), best[0])
    stuck = tuple(answered[i] for i in _candidates(best[1], answered)[0])
    return SearchResult(False, len(seen), best[0], best[1][3], stuck)


def _candidates(state: _State, answered: Sequence[Operation]) -> tuple[list[int], float]:
    """Return the answered operations that may come next, and when the first of them must."""
    base, bits, _, _ = state
    soonest, found = NEVER, []
    for i in range(base, len(answered)):
        if answered[i].called_s > soonest:
            break
        if not bits >> (i - base) & 1:
            found.append(i)
            soonest = min(soonest, answered[i].answered_s)
    return found, soonest


def _next(
    state: _State, answered: Sequence[Operation], opened: Sequence[Operation]
) -> Iterator[_State]:
    """Return every state that one more operation leads to.

    Those of open operations come first: the search takes the last one, so it tries them last.
    """
    base, bits, open_bits, value = state
    found, soonest = _candidates(state, answered)
    for i, operation in enumerate(opened):
        if operation.called_s > soonest:
            break
        fits, after = operation.after(value)
        if fits and not open_bits >> i & 1:
            yield base, bits, open_bits | 1 << i, after
    for i in reversed(found):
        fits, after = answered[i].after(value)
        if fits:
            yield (*_shifted(base, bits | 1 << (i - base)), open_bits, after)


def _shifted(base: int, bits: int) -> tuple[int, int]:
    """Return the same with every placed operation at the front counted in ``base``."""
    while bits & 1:
        base, bits = base + 1, bits >> 1
    return base, bits

"""Define what a check is, and the verdicts and sentences that all checks share.

Used by every module of `chaos.checks`; called by `chaos.run.runner` through `CHECKS`.
Invariant: a verdict is valid, invalid with a counterexample, or unknown. Too little evidence is
unknown, never valid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from inspect import cleandoc
from typing import Any

from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.scenario.tables import Params

#: A counterexample is read by people; more lines of the same kind add nothing.
EXAMPLES_MAX = 10


class Validity(StrEnum):
    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"  #: too little happened; never taken for valid


@dataclass(frozen=True)
class Verdict:
    """The result of one check, and what it rests on."""

    check: str
    validity: Validity
    because: str
    counterexample: tuple[str, ...] = ()


def worst(verdicts: Iterable[Verdict]) -> Validity:
    """Return invalid if any is, else unknown if any is, else valid; for none, unknown."""
    found = {verdict.validity for verdict in verdicts} or {Validity.UNKNOWN}
    order = (Validity.INVALID, Validity.UNKNOWN, Validity.VALID)
    return next(validity for validity in order if validity in found)


CheckFunction = Callable[[Evidence, Any], Verdict]


@dataclass(frozen=True)
class Check:
    """One check; ``run`` gets the evidence and its own `Params`.

    ``needs`` names evidence that is collected only where a check asks for it: ``audit`` of the
    guest, comparison of its ``disks``, ``inventory`` of both QEMUs.
    """

    doc: str
    run: CheckFunction
    params: type[Params] = Params
    needs: frozenset[str] = frozenset()


#: All checks by name, which is that of their function.
CHECKS: dict[str, Check] = {}


def check(
    params: type[Params] = Params, needs: Collection[str] = ()
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as the check of its name; the docstring describes it to users."""

    def register(function: CheckFunction) -> CheckFunction:
        name = function.__name__

        def named(evidence: Evidence, given: Any) -> Verdict:
            found = function(evidence, given)
            return replace(found, check=name, counterexample=found.counterexample[:EXAMPLES_MAX])

        doc = " ".join(cleandoc(function.__doc__ or name).split())
        CHECKS[name] = Check(doc, named, params, frozenset(needs))
        return named

    return register


def valid(because: str) -> Verdict:
    """Return that the promise was kept, on that much evidence."""
    return Verdict("", Validity.VALID, because)


def unknown(because: str) -> Verdict:
    """Return that the evidence does not suffice."""
    return Verdict("", Validity.UNKNOWN, because)


def invalid(because: str, examples: Iterable[str] = ()) -> Verdict:
    """Return that the promise was broken, as the examples show."""
    return Verdict("", Validity.INVALID, because, tuple(examples))


def when(evidence: Evidence, at_s: float) -> str:
    """Format a moment for people: seconds since the steady state."""
    return f"{at_s - evidence.steady_s:.3f} s"


def count(number: int, thing: str) -> str:
    """Format a number of things: ``1 read``, ``2 reads``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"

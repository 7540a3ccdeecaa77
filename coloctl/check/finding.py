"""Hold the doctor's findings, by name and severity; pure.

Used by `check.doctor` and its parts; `cli.verbs.doctor` prints them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from coloctl.check.verdict import CheckResult, StaticCheck
from coloctl.errors import ColoctlError


class Severity(StrEnum):
    """The degree to which a finding matters to the pair."""

    OK = "ok"
    INFO = "info"  #: worth knowing; nothing to be done
    WARNING = "warning"  #: it will work, but not as one would wish
    ERROR = "error"  #: a start would fail, or the pair would


@dataclass(frozen=True)
class Precondition:
    """One precondition that was examined."""

    name: str
    severity: Severity
    sentence: str
    hint: str = ""


_OF_CHECK = {
    CheckResult.OK: Severity.OK,
    CheckResult.WARN: Severity.WARNING,
    CheckResult.UNKNOWN: Severity.WARNING,
    CheckResult.FAIL: Severity.ERROR,
}


def of_check(check: StaticCheck) -> Precondition:
    """Convert the result of a probe of the binary, for a pair that needs it."""
    return Precondition(check.name, _OF_CHECK[check.verdict], check.sentence, check.hint)


async def guarded(name: str, look: Awaitable[Iterable[Precondition]]) -> list[Precondition]:
    """Return what ``look`` found; an error that it met is a finding too."""
    try:
        return list(await look)
    except ColoctlError as error:
        return [Precondition(name, Severity.ERROR, error.message, error.hint or "")]


def worst(findings: Iterable[Precondition]) -> Severity:
    """Return the highest severity among ``findings``."""
    order = list(Severity)
    return max((one.severity for one in findings), key=order.index, default=Severity.OK)


def document(findings: Iterable[Precondition]) -> dict[str, Any]:
    """Return the findings as a JSON object, version 1."""
    listed = list(findings)
    return {
        "schema": 1,
        "severity": str(worst(listed)),
        "findings": [asdict(one) for one in listed],
    }

"""What the doctor found, by name and severity; pure."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from coloctl.check.verdict import Check, Verdict
from coloctl.errors import ColoctlError


class Severity(StrEnum):
    """How much a finding matters to the pair."""

    OK = "ok"
    INFO = "info"  #: worth knowing; nothing to be done
    WARNING = "warning"  #: it will work, but not as one would wish
    ERROR = "error"  #: a start would fail, or the pair would


@dataclass(frozen=True)
class Finding:
    """One precondition that was looked at."""

    name: str
    severity: Severity
    sentence: str
    hint: str = ""


_OF_CHECK = {
    Verdict.OK: Severity.OK,
    Verdict.WARN: Severity.WARNING,
    Verdict.UNKNOWN: Severity.WARNING,
    Verdict.FAIL: Severity.ERROR,
}


def of_check(check: Check) -> Finding:
    """What a probe of the binary found, for a pair that needs it."""
    return Finding(check.name, _OF_CHECK[check.verdict], check.sentence, check.hint)


async def guarded(name: str, look: Awaitable[Iterable[Finding]]) -> list[Finding]:
    """What ``look`` found; an error it met is a finding too."""
    try:
        return list(await look)
    except ColoctlError as error:
        return [Finding(name, Severity.ERROR, error.message, error.hint or "")]


def worst(findings: Iterable[Finding]) -> Severity:
    """The highest severity among ``findings``."""
    order = list(Severity)
    return max((one.severity for one in findings), key=order.index, default=Severity.OK)


def document(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings as a JSON object, version 1."""
    listed = list(findings)
    return {
        "schema": 1,
        "severity": str(worst(listed)),
        "findings": [asdict(one) for one in listed],
    }

"""Checks and findings come to one verdict each: the worst, and a trial outweighs a suspicion."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from coloctl.check import machine
from coloctl.check.finding import Precondition, Severity, document, guarded, of_check, worst
from coloctl.check.probe import Report, conclude, with_trial
from coloctl.check.verdict import CheckResult, ColoSupport, FullVerdict, StaticCheck
from coloctl.errors import PreconditionFailed

pytestmark = pytest.mark.unit


def report(*verdicts: CheckResult) -> Report:
    checks = tuple(StaticCheck(str(one), one, f"It is {one}.", f"mend {one}") for one in verdicts)
    return Report("/opt/qemu", "11.1.3", "tcg", "pc", checks, ColoSupport.UNKNOWN, "")


def full(outcome: ColoSupport, hint: str = "") -> FullVerdict:
    return FullVerdict("/opt/qemu", "11.1.3", "tcg", "pc", outcome, "Tried.", hint)


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        ((CheckResult.OK, CheckResult.OK), ColoSupport.WORKS),
        ((CheckResult.OK, CheckResult.WARN), ColoSupport.SUSPECT),
        ((CheckResult.WARN, CheckResult.UNKNOWN), ColoSupport.UNKNOWN),
        ((CheckResult.WARN, CheckResult.UNKNOWN, CheckResult.FAIL), ColoSupport.FAILS),
    ],
)
def test_the_worst_check_decides(verdicts: tuple[CheckResult, ...], outcome: ColoSupport) -> None:
    assert conclude(report(*verdicts)).outcome is outcome


def test_the_worst_check_speaks_for_all() -> None:
    said = conclude(report(CheckResult.OK, CheckResult.WARN, CheckResult.FAIL))
    assert (said.sentence, said.hint) == ("It is fail.", "mend fail")


def test_a_suspicion_names_the_way_to_be_sure() -> None:
    assert "--full" in conclude(report(CheckResult.WARN)).hint


@pytest.mark.parametrize("outcome", [ColoSupport.WORKS, ColoSupport.FAILS, ColoSupport.UNKNOWN])
def test_a_trial_outweighs_a_suspicion(outcome: ColoSupport) -> None:
    tried = with_trial(conclude(report(CheckResult.WARN)), full(outcome))
    assert (tried.outcome, tried.sentence) == (outcome, "Tried.")


def test_a_doubt_is_still_said_after_a_trial_that_went_well() -> None:
    assert with_trial(report(CheckResult.WARN), full(ColoSupport.WORKS)).hint == "mend warn"
    assert with_trial(report(CheckResult.WARN), full(ColoSupport.FAILS, "newer")).hint == "newer"


def test_a_report_is_a_document() -> None:
    told = with_trial(conclude(report(CheckResult.OK)), full(ColoSupport.WORKS)).to_json()
    assert told["schema"] == 1
    assert told["outcome"] == "works"
    assert told["checks"][0] == {
        "name": "ok", "verdict": "ok", "sentence": "It is ok.", "hint": "mend ok"
    }  # fmt: skip
    assert told["full"]["directions"] == ()


def finding(severity: Severity) -> Precondition:
    return Precondition("thing", severity, "It is so.")


def test_the_worst_finding_decides() -> None:
    assert worst([]) is Severity.OK
    assert worst(map(finding, [Severity.OK, Severity.INFO])) is Severity.INFO
    assert worst(map(finding, [Severity.ERROR, Severity.WARNING])) is Severity.ERROR
    told = document([finding(Severity.WARNING)])
    assert (told["schema"], told["severity"], len(told["findings"])) == (1, "warning", 1)


def test_a_failed_check_is_an_error_to_a_pair() -> None:
    check = StaticCheck("objects", CheckResult.FAIL, "Missing.", "newer")
    assert of_check(check) == Precondition("objects", Severity.ERROR, "Missing.", "newer")
    assert of_check(replace(check, verdict=CheckResult.UNKNOWN)).severity is Severity.WARNING


async def test_what_a_look_runs_into_is_a_finding() -> None:
    async def look() -> Iterable[Precondition]:
        raise PreconditionFailed("There is no tap.", hint="make one")

    found = await guarded("nic hn0", look())
    assert found == [Precondition("nic hn0", Severity.ERROR, "There is no tap.", "make one")]


def test_a_folder_that_does_not_exist_yet_can_be_used(tmp_path: Path) -> None:
    assert machine.unusable(tmp_path / "new" / "deeper") is None
    assert machine.unusable(tmp_path) is None


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in (machine.unusable(tmp_path / "file") or "")
    assert "is not a folder" in (machine.unusable(tmp_path / "file" / "below") or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    assert "12345" in (machine.unusable(tmp_path) or "")


def test_a_tun_that_does_not_open_is_a_warning(tmp_path: Path) -> None:
    missing = machine.tun(tmp_path / "tun")
    assert missing.severity is Severity.WARNING
    assert "No such file" in missing.sentence


def test_namespaces_need_capabilities_or_the_kernels_leave(tmp_path: Path) -> None:
    status, sysctl = tmp_path / "status", tmp_path / "sys"
    (sysctl / "user").mkdir(parents=True)
    status.write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert "as root" in machine.namespaces(sysctl, status).sentence
    status.write_text("CapEff:\t0000000000001000\n")
    assert "without root" in machine.namespaces(sysctl, status).sentence
    (sysctl / "user/max_user_namespaces").write_text("0\n")
    forbidden = machine.namespaces(sysctl, status)
    assert forbidden.severity is Severity.WARNING
    assert "user.max_user_namespaces is 0" in forbidden.sentence

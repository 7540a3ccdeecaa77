"""JUnit XML that any reader parses: a pass is only what is valid."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from support import runs

from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.run import junit

LOST = Verdict("no_lost_acks", Validity.INVALID, "2 records are missing", ("2:40", "2:41"))


def test_a_case_says_how_its_run_ended() -> None:
    void = Evidence(5.0, 5.0, (), {})
    valid, invalid = runs.outcome(), runs.outcome(verdicts=[LOST])
    unknown = runs.outcome(void, (), "The guest never booted.")
    other = replace(valid, scenario=valid.scenario.model_copy(update={"name": "other"}), seed=8)
    root = ElementTree.fromstring(junit.document([valid, invalid, unknown, other]))
    assert root.attrib["tests"], root.attrib["failures"] == ("4", "1")
    suites = {suite.attrib["name"]: suite for suite in root.findall("testsuite")}
    assert list(suites) == ["kill-then-freeze", "other"]
    assert suites["kill-then-freeze"].attrib["errors"] == "1"
    passed, failed, error = suites["kill-then-freeze"].findall("testcase")
    assert passed.find("failure") is None
    assert passed.find("error") is None
    wrong = failed.find("failure")
    assert wrong is not None
    assert "2:41" in (wrong.text or "")
    assert wrong.attrib["message"] == "no_lost_acks: 2 records are missing"
    unclear = error.find("error")
    assert unclear is not None
    assert unclear.attrib["message"] == "The guest never booted."
    properties = {one.attrib["name"]: one.attrib["value"] for one in passed.iter("property")}
    assert properties["seed"] == "7"
    assert properties["replay"].startswith("coloctl chaos run ")


@given(st.text(), st.text(st.characters(codec=None), min_size=1))
def test_whatever_a_check_says_the_document_is_xml(because: str, counterexample: str) -> None:
    verdict = Verdict("odd", Validity.INVALID, because, (counterexample,))
    text = junit.document([runs.outcome(Evidence(5.0, 5.0, (), {}), [verdict])])
    root = ElementTree.fromstring(text.encode())
    assert len(list(root.iter("failure"))) == 1


def test_control_characters_stay_readable() -> None:
    verdict = Verdict("odd", Validity.INVALID, "the guest said \x1b[31m\x00", ())
    root = ElementTree.fromstring(junit.document([runs.outcome(verdicts=[verdict])]).encode())
    (wrong,) = root.iter("failure")
    assert "\\x1b[31m\\x00" in wrong.attrib["message"]

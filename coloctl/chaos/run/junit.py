"""Write results as JUnit XML, for scenarios in a CI; pure.

Called by `cli.verbs.chaos`; reads `chaos.run.result`. junitparser comes with the extra ``demo``: it
is imported when a document is made.
Invariant: an invalid run is a failure and an unknown one an error; neither is taken for a pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.report.markup import visible
from coloctl.chaos.report.scale import duration
from coloctl.chaos.run.result import RunResult

if TYPE_CHECKING:
    from junitparser import TestCase


def document(results: Iterable[RunResult]) -> str:
    """Write the XML document: a suite per scenario, a case per run of it, in the order given."""
    from junitparser import JUnitXml, TestSuite

    suites: dict[str, list[RunResult]] = {}
    for result in results:
        suites.setdefault(result.scenario.name, []).append(result)
    xml = JUnitXml("coloctl chaos")
    for name, runs in suites.items():
        suite = TestSuite(visible(name))
        if started := min((run.started_at for run in runs if run.started_at), default=""):
            suite.timestamp = started.split("+", maxsplit=1)[0]
        suite.add_testcases([_case(run) for run in runs])
        xml.add_testsuite(suite)
    xml.update_statistics()
    file = BytesIO()
    xml.write(file, pretty=True)
    return file.getvalue().decode()


def _case(run: RunResult) -> TestCase:
    from junitparser import Error, Failure, Properties, Property, TestCase

    case = TestCase(
        visible(f"{run.scenario.title} [seed {run.seed}]"),
        visible(f"chaos.{run.scenario.name}"),
        round(run.duration_s, 3),
    )
    qemu = f"{run.qemu.version} {run.qemu.accel}".strip()
    named = {"seed": run.seed, "replay": run.replay, "qemu": qemu, "artifacts": run.artifacts or ""}
    properties = Properties()
    for name, value in named.items():
        if value != "":
            properties.add_property(Property(name, visible(str(value))))
    case.append(properties)
    if run.validity is not Validity.VALID:
        wrong = {Validity.INVALID: Failure, Validity.UNKNOWN: Error}[run.validity]
        case.result = wrong(visible(run.because()), str(run.validity))
        case.result[0].text = visible("\n".join(_grounds(run)))
    case.system_out = visible("\n".join(_summary(run)))
    return case


def _grounds(run: RunResult) -> list[str]:
    """List each check that is not valid with its counterexample, then how to run it again."""
    lines = [run.reason] if run.reason else []
    for one in run.verdicts:
        if one.validity is not Validity.VALID:
            lines.append(f"{one.check}: {one.validity}: {one.because}")
            lines += [f"    {line}" for line in one.counterexample]
    return [*lines, f"replay: {run.replay}"]


def _summary(run: RunResult) -> list[str]:
    """Write a line per fault, and one per check."""
    faults = [
        f"{one['struck_s']:.3f} s: {one['kind']} {one['target']}"
        + (f" (node {', '.join(map(run.place, one['nodes']))})" if one["nodes"] else "")
        + (f", missed: {one['missed']}" if one["missed"] else "")
        + f", outage {duration(one['outage_ms'])}"
        for one in run.to_json()["faults"][:50]
    ]
    return [*faults, *(f"{one.check}: {one.validity}: {one.because}" for one in run.verdicts)]

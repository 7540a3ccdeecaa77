"""Write results as JUnit XML, for scenarios in a CI; pure.

Called by `cli.verbs.chaos`; reads `chaos.run.result`.
Invariant: an invalid run is a failure and an unknown one an error; neither is taken for a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.report.markup import visible
from coloctl.chaos.report.scale import duration
from coloctl.chaos.run.result import RunResult

#: The element of JUnit for a run that is not valid.
WORDS = {Validity.INVALID: "failure", Validity.UNKNOWN: "error"}


def document(results: Iterable[RunResult]) -> str:
    """Write the XML document: a suite per scenario, a case per run of it, in the order given."""
    suites: dict[str, list[RunResult]] = {}
    for result in results:
        suites.setdefault(result.scenario.name, []).append(result)
    every = [one for runs in suites.values() for one in runs]
    root = Element("testsuites", {"name": "coloctl chaos", **_counts(every)})
    for name, runs in suites.items():
        started = min((run.started_at for run in runs if run.started_at), default="")
        when = {"timestamp": started.split("+", maxsplit=1)[0]} if started else {}
        suite = SubElement(root, "testsuite", {"name": visible(name), **_counts(runs), **when})
        for run in runs:
            _case(suite, run)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _counts(runs: Sequence[RunResult]) -> dict[str, str]:
    seen = [run.validity for run in runs]
    return {
        "tests": str(len(runs)),
        "failures": str(seen.count(Validity.INVALID)),
        "errors": str(seen.count(Validity.UNKNOWN)),
        "skipped": "0",
        "time": f"{sum(run.duration_s for run in runs):.3f}",
    }


def _case(suite: Element, run: RunResult) -> None:
    case = SubElement(
        suite,
        "testcase",
        classname=visible(f"chaos.{run.scenario.name}"),
        name=visible(f"{run.scenario.title} [seed {run.seed}]"),
        time=f"{run.duration_s:.3f}",
    )
    properties = SubElement(case, "properties")
    named = {
        "seed": run.seed,
        "replay": run.replay,
        "qemu": f"{run.qemu.version} {run.qemu.accel}".strip(),
        "artifacts": run.artifacts or "",
    }
    for name, value in named.items():
        if value != "":
            SubElement(properties, "property", name=name, value=visible(str(value)))
    if run.validity in WORDS:
        wrong = SubElement(
            case, WORDS[run.validity], type=str(run.validity), message=visible(run.because())
        )
        wrong.text = visible("\n".join(_grounds(run)))
    SubElement(case, "system-out").text = visible("\n".join(_summary(run)))


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
    document = run.to_json()
    faults = [
        f"{one['struck_s']:.3f} s: {one['kind']} {one['target']}"
        + (f" (node {', '.join(one['nodes'])})" if one["nodes"] else "")
        + (f", missed: {one['missed']}" if one["missed"] else "")
        + f", outage {duration(one['outage_ms'])}"
        for one in document["faults"][:50]
    ]
    return [*faults, *(f"{one.check}: {one.validity}: {one.because}" for one in run.verdicts)]

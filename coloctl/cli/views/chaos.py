"""Draw scenarios and the results of their runs, as documents and as tables; pure.

Called by `cli.verbs.chaos`; takes the kinds from `chaos.faults`, `chaos.checks` and
`chaos.workloads`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.checks.verdict import count
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.scenario.values import Scenario
from coloctl.chaos.workloads import WORKLOADS
from coloctl.cli.views import render

MARKS = {"valid": "[green]✔[/]", "invalid": "[bold red]✘[/]", "unknown": "[yellow]?[/]"}


def scenario_document(scenario: Scenario) -> dict[str, Any]:
    """Return the document of one scenario."""
    return {
        "name": scenario.name,
        "title": scenario.title,
        "why": scenario.why,
        "promises": list(scenario.promises),
        "seed": scenario.seed,
        "workloads": [work.kind for work in scenario.workloads],
        "faults": sorted({one.kind for fault in scenario.faults for one in fault.choices}),
        "expect": list(scenario.expect),
    }


def scenarios(document: Mapping[str, Any]) -> RenderableType:
    """Draw a line for each scenario."""
    table = render.plain_grid()
    for one in document["scenarios"]:
        table.add_row(f"[bold]{escape(one['name'])}[/]", escape(one["title"]))
    count = len(document["scenarios"])
    return Group(table, "", f"{count} scenario{'' if count == 1 else 's'}.")


def kinds_document() -> dict[str, Any]:
    """Return the document of all kinds of faults, workloads and checks."""
    return {
        "schema": 1,
        "faults": [
            {
                "kind": name,
                "doc": kind.doc,
                "targets": list(kind.targets),
                "keys": _keys(kind.params),
            }
            for name, kind in sorted(FAULTS.items())
        ],
        "workloads": [
            {"kind": name, "doc": kind.doc, "keys": _keys(kind.params)}
            for name, kind in sorted(WORKLOADS.items())
        ],
        "checks": [
            {"check": name, "doc": check.doc, "keys": _keys(check.params)}
            for name, check in sorted(CHECKS.items())
        ],
    }


def _keys(params: Any) -> dict[str, Any]:
    """Return the keys with their defaults; None for one that has to be given."""
    return {
        name: None if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in params.model_fields.items()
    }


def kinds(document: Mapping[str, Any]) -> RenderableType:
    """Draw three tables: faults, workloads, checks."""
    parts: list[RenderableType] = []
    for title, key, name in (
        ("Faults", "faults", "kind"),
        ("Workloads", "workloads", "kind"),
        ("Checks", "checks", "check"),
    ):
        table = render.plain_grid()
        for one in document[key]:
            said = escape(one["doc"])
            if one.get("targets"):
                said += f"\n[dim]targets: {', '.join(one['targets'])}[/]"
            if one["keys"]:
                given = ", ".join(
                    f"{k} = {v}" if v is not None else k for k, v in one["keys"].items()
                )
                said += f"\n[dim]keys: {escape(given)}[/]"
            table.add_row(f"[bold]{one[name]}[/]", said)
        parts += [Text(title, "bold cyan"), table, ""]
    return Group(*parts[:-1])


def problems(document: Mapping[str, Any]) -> RenderableType:
    """Draw every problem with its hint, and how many files are right."""
    lines: list[RenderableType] = []
    for one in document["problems"]:
        lines.append(f"{MARKS['invalid']} {escape(one['message'])}")
        if one["hint"]:
            lines.append(f"  [cyan]hint:[/] {escape(one['hint'])}")
    wrong, files = len(document["problems"]), document["files"]
    many = f"{files} scenario{'' if files == 1 else 's'}"
    lines.append(
        f"{wrong} problem{'' if wrong == 1 else 's'} in {many}."
        if wrong
        else f"{MARKS['valid']} {many}, nothing wrong."
    )
    return Group(*lines)


def run_line(run: Mapping[str, Any], of: int) -> str:
    """Return the line of one run, as it ends."""
    said = run["reason"] or _told(run)
    name = escape(run["scenario"]["name"])
    return f"{MARKS[run['verdict']]} {name} {run['seed']}: {run['verdict']}, {escape(said)}"


def _told(run: Mapping[str, Any]) -> str:
    """Return the figures of a valid run: faults, acknowledged operations, the longest outage."""
    acknowledged = sum(work["acknowledged"] for work in run["workloads"])
    outages = [one["outage_ms"] for one in run["faults"] if one["outage_ms"] is not None]
    faults = len(run["faults"])
    said = f"{faults} fault{'' if faults == 1 else 's'}, {acknowledged} operations acknowledged"
    return f"{said}, longest silence {max(outages):.0f} ms" if outages else said


def runs(document: Mapping[str, Any]) -> RenderableType:
    """Draw all runs as a table; the counterexamples of a run stand below it."""
    table = render.plain_grid()
    for run in document["runs"]:
        said = _told(run) if run["verdict"] == "valid" else run["reason"]
        cell = escape(said)
        if run["verdict"] != "valid":
            cell += "".join(f"\n[dim]{escape(line)}[/]" for line in _counterexamples(run)[:5])
            cell += f"\n[cyan]replay:[/] {escape(run['replay'])}"
        table.add_row(
            MARKS[run["verdict"]],
            f"[bold]{escape(run['scenario']['name'])}[/]",
            str(run["seed"]),
            f"{run['duration_s']:.0f} s",
            cell,
        )
    return Group("", table, "", *_closing(document["runs"]))


def _closing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how many runs had each verdict, and their figures together."""
    counted = Counter(run["verdict"] for run in runs)
    words = [f"{counted[word]} {word}" for word in ("valid", "invalid", "unknown") if counted[word]]
    faults = sum(len(run["faults"]) for run in runs)
    takeovers = sum(len(run["takeovers"]) for run in runs)
    works = [work for run in runs for work in run["workloads"]]
    acknowledged = sum(work["acknowledged"] for work in works)
    connections = sum(work["connections"] for work in works)
    return [
        ", ".join(words) + ".",
        f"Together: {count(faults, 'fault')}, {count(takeovers, 'failover')}, "
        f"{count(connections, 'connection')}, {acknowledged:,} operations acknowledged.",
    ]


def _counterexamples(run: Mapping[str, Any]) -> Sequence[str]:
    return [
        line
        for check in run["checks"]
        if check["verdict"] == run["verdict"]
        for line in check["counterexample"]
    ]

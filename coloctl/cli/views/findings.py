"""Print findings of a check as a table with one closing sentence, and turn them into an exit code.

Called by `cli.verbs.doctor` and `cli.verbs.host`; the findings are those of `check.finding`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from coloctl.check.finding import Precondition, Severity
from coloctl.cli.views import render

EXIT_CODES = {Severity.OK: 0, Severity.INFO: 0, Severity.WARNING: 3, Severity.ERROR: 1}
MARKS = {
    Severity.OK: "[green]✔[/]",
    Severity.INFO: "[blue]i[/]",
    Severity.WARNING: "[yellow]![/]",
    Severity.ERROR: "[red]✘[/]",
}


def show(findings: Sequence[Precondition], console: Console) -> None:
    """Print the findings as a table, hints below what they help, and one closing sentence."""
    table = render.plain_grid()
    for one in findings:
        sentence = escape(one.sentence)
        if one.hint and one.severity is not Severity.OK:
            sentence += f"\n[cyan]hint:[/] {escape(one.hint)}"
        table.add_row(MARKS[one.severity], one.name, sentence)
    console.print(table)
    console.print(f"\n{_closing(findings)}")


def _closing(findings: Sequence[Precondition]) -> str:
    counted = Counter(one.severity for one in findings)
    errors, warnings = counted[Severity.ERROR], counted[Severity.WARNING]
    if errors:
        return f"[bold red]{_many(errors, 'error')}[/] and {_many(warnings, 'warning')}."
    if warnings:
        return f"[bold yellow]{_many(warnings, 'warning')}[/], no error."
    return f"[bold green]All is well[/]: {len(findings)} findings, no warning."


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

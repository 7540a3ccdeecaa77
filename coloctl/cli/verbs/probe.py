"""Define the verb `probe`: find out whether COLO works with a QEMU on this machine.

Calls `check.probe` and, for a trial with a guest, `check.trial`; `lab.qemu` fetches a build.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from coloctl.check.choose import named_qemu
from coloctl.check.probe import Report, with_trial
from coloctl.check.probe import probe as ask
from coloctl.check.trial import DEADLINE_S, try_out
from coloctl.check.verdict import CheckResult, ColoSupport, Direction, FullVerdict
from coloctl.cli.options import Duration, format_option
from coloctl.cli.views import plain, render
from coloctl.cli.views.downloads import Bars
from coloctl.host import open_host
from coloctl.lab import qemu as qemus
from coloctl.model.pair import Role

T = TypeVar("T")

EXIT_CODES = {
    ColoSupport.WORKS: 0,
    ColoSupport.FAILS: 1,
    ColoSupport.SUSPECT: 3,
    ColoSupport.UNKNOWN: 3,
}
MARKS = {
    CheckResult.OK: "[green]✔[/]",
    CheckResult.WARN: "[yellow]![/]",
    CheckResult.FAIL: "[red]✘[/]",
    CheckResult.UNKNOWN: "[magenta]?[/]",
    ColoSupport.WORKS: "[green]✔[/]",
    ColoSupport.FAILS: "[red]✘[/]",
    ColoSupport.SUSPECT: "[yellow]![/]",
    ColoSupport.UNKNOWN: "[magenta]?[/]",
}
COLOURS = {
    ColoSupport.WORKS: "bold green",
    ColoSupport.FAILS: "bold red",
    ColoSupport.SUSPECT: "bold yellow",
    ColoSupport.UNKNOWN: "bold magenta",
}


@dataclass(frozen=True)
class Question:
    """The QEMU, accelerator and machine type that `probe` was asked about."""

    qemu: str
    accel: str
    machine: str
    full: bool
    deadline_s: float


@click.command()
@click.option(
    "--qemu",
    default="system",
    show_default=True,
    metavar="QEMU",
    help=f"A path, a program on PATH, or a build: {', '.join(qemus.NAMES)}.",
)
@click.option(
    "--accel",
    type=click.Choice(("auto", "kvm", "tcg")),
    default="auto",
    show_default=True,
    help="auto: KVM where it really runs code.",
)
@click.option("--machine", default="pc", show_default=True, help="The machine type.")
@click.option("--full", is_flag=True, help="Try it out: a small real pair fails over, both ways.")
@click.option(
    "--deadline",
    type=Duration(),
    default=DEADLINE_S,
    show_default=True,
    help="Seconds that --full may take.",
)
@format_option("pretty", "json")
def probe(*, qemu: str, accel: str, machine: str, full: bool, deadline: float, form: str) -> int:
    """Find out whether COLO works with a QEMU, an accelerator and a machine type.

    \b
    Exit codes: 0 it works, 1 it does not, 3 something speaks against it or it cannot be determined.
    """
    question = Question(qemu, accel, machine, full, deadline)
    report = _run(_answer(question, _binary(qemu), quiet=form == "json"))
    if form == "json":
        plain.print_json(report.to_json())
    else:
        show(report, render.console())
    return EXIT_CODES[report.outcome]


def _binary(qemu: str) -> Path:
    """Find the binary that is meant; a build of Debian's that is not here yet is fetched."""
    if qemu not in qemus.SUITES or qemus.find(qemu) is not None:
        return named_qemu(qemu)
    with Bars() as bars:
        return qemus.provide(qemu, report=bars.report).binary


async def _answer(question: Question, binary: Path, *, quiet: bool) -> Report:
    host = open_host("local")
    try:
        report = await ask(binary, question.accel, question.machine, host)
    finally:
        await host.aclose()
    if not question.full or report.outcome is ColoSupport.FAILS:
        return report
    console = Console(stderr=True, highlight=False)
    drawn = not quiet and console.is_terminal
    with console.status("trying it out") if drawn else nullcontext() as status:

        def tell(killed: Role, stage: str) -> None:
            if isinstance(status, Status):
                status.update(f"a pair whose {killed} will be killed: {stage}")

        full = await try_out(
            binary,
            report.accel,
            question.machine,
            deadline_s=question.deadline_s,
            report=tell,
        )
    return with_trial(report, full)


def _run(act: Coroutine[Any, Any, T]) -> T:
    """Run ``act`` and return its result; SIGTERM cancels it as Ctrl-C does, with its clean-up."""

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await act

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def show(report: Report, console: Console) -> None:
    """Print the report as a table, a closing sentence and a hint."""
    console.print(f"[bold]{report.machine}[/] under [bold]{report.accel}[/]  {report.binary}\n")
    checks = render.plain_grid()
    for check in report.checks:
        checks.add_row(MARKS[check.verdict], check.name, escape(check.sentence))
    console.print(checks)
    if report.full is not None and report.full.directions:
        console.print()
        console.print(_trial(report.full))
        for line in _last_words(report.full):
            console.print(f"   [dim]{escape(line)}[/]")
    console.print(f"\n[{COLOURS[report.outcome]}]{report.outcome}:[/] {escape(report.sentence)}")
    if report.hint:
        console.print(f"[cyan]hint:[/] {escape(report.hint)}")


def _trial(full: FullVerdict) -> Table:
    table = Table(
        "", "trial", "reached", "checkpoints", "pause p50", "failover",
        box=None, padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    for one in full.directions:
        table.add_row(
            MARKS[one.outcome],
            f"the {one.killed} is killed",
            one.stage,
            str(one.checkpoints),
            _ms(one.pause_p50_ms),
            _ms(one.failover_ms),
        )
    return table


def _last_words(full: FullVerdict) -> list[str]:
    last: Direction = full.directions[-1]
    return (
        [] if last.outcome is ColoSupport.WORKS else [last.sentence, *last.last_words.splitlines()]
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"

"""List scenarios, check them, and run them against real pairs: `coloctl chaos`.

Called by `cli.verbs`; runs a batch of `chaos.run.batch` and draws its results.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from coloctl import paths
from coloctl.chaos.run.result import RunResult
from coloctl.cli.bench_options import qemu_option
from coloctl.cli.options import format_option, typed_verb
from coloctl.cli.views import chaos as chaos_views
from coloctl.cli.views import plain as documents
from coloctl.cli.views import render
from coloctl.errors import ScenarioError, UsageError
from coloctl.interrupts import interruptible

if TYPE_CHECKING:
    from coloctl.chaos.scenario.values import Scenario

#: What the pair and the lab of a scenario are called, with a number when that name is in use.
NAME = "chaos"
#: The scenarios that are meant where none is named: those of the folder in which coloctl is called,
#: such as a checkout, else those that came with it.
FOLDER = Path("scenarios")

files_argument = click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path)
)


faults_option = click.option(
    "--faults",
    "only",
    metavar="KIND,KIND,...",
    help="Only scenarios whose faults are all of these kinds (`list --kinds`).",
)


@click.group()
def chaos() -> None:
    """Break a protected pair on purpose, and check what its clients saw.

    A scenario says who works, what goes wrong and when, and what must hold all the same. FILE is
    one, or a folder of them; without any, those in the folder scenarios/ are meant, or those that
    came with coloctl.
    """


@chaos.command("list")
@files_argument
@click.option("--kinds", is_flag=True, help="Instead: the faults, workloads and checks there are.")
@faults_option
@format_option("pretty", "json")
def list_scenarios(files: tuple[Path, ...], kinds: bool, only: str | None, form: str) -> int:
    """List scenarios with what each is about."""
    if kinds:
        document = chaos_views.kinds_document()
        return _show(document, form, chaos_views.kinds(document))
    found = [scenario for _, scenario in chosen(files, only)]
    document = {"schema": 1, "scenarios": [chaos_views.scenario_document(one) for one in found]}
    return _show(document, form, chaos_views.scenarios(document))


@chaos.command(short_help="Find what is wrong with scenario files.")
@files_argument
@click.option("--schema", is_flag=True, help="Instead: print the JSON Schema of scenario files.")
@format_option("pretty", "json")
def check(files: tuple[Path, ...], schema: bool, form: str) -> int:
    """Find everything that is wrong with scenario files; nothing is run.

    \b
    Exit codes: 0 nothing, 2 something.
    """
    from coloctl.chaos.scenario import file

    if schema:
        documents.print_json(file.json_schema())
        return 0
    wrong: list[ScenarioError] = []
    paths = scenario_files(files)
    for path in paths:
        wrong += file.examine(path)[1]
    document = {
        "schema": 1,
        "files": len(paths),
        "problems": [{"at": one.path, "message": one.message, "hint": one.hint} for one in wrong],
    }
    _show(document, form, chaos_views.problems(document))
    return 2 if wrong else 0


@chaos.command()
@files_argument
@click.option("--seed", type=click.IntRange(0), help="Instead of that in the file.")
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Each N times, with the seed and those after it.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Runs side by side, each in a lab of its own.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="M",
    help="No run begins later than that.",
)
@click.option(
    "--machines",
    "on_machines",
    is_flag=True,
    help="On machines of their own that are reached over ssh; needs root.",
)
@faults_option
@click.option("--keep", is_flag=True, help="Leave lab and pair running, to be looked at.")
@click.option("--tls", is_flag=True, help="Encrypt every wire between the nodes.")
@click.option("--shrink", is_flag=True, help="Make what is invalid as small as it stays invalid.")
@click.option(
    "--capture", is_flag=True, help="Keep the packets on the guest's LAN (needs --artifacts)."
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="JUnit XML for CI.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="FILE.html", help="A page about the run."
)
@click.option(
    "--artifacts",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Logs, histories, journal and report of each run, in a folder of its own.",
)
@qemu_option
@click.option("--name", help=f"What its pair and lab are called: {NAME}, or the next that is free.")
@format_option("pretty", "json")
def run(**options: Any) -> int:
    """Run scenarios against real pairs, and check what must hold.

    \b
    Exit codes: 0 every run valid, 1 one was invalid, 3 one proves nothing.
    """
    from coloctl.chaos.checks.verdict import Validity
    from coloctl.chaos.run import batch, testbed

    found = chosen(options["files"], options["only"])
    _refuse(options, found)
    site = "machines" if options["on_machines"] else "lab"
    scenarios = possible(found, site)
    aside = Console(stderr=True, highlight=False)
    outcomes: list[RunResult] = []
    with contextlib.ExitStack() as stack:
        name = options["name"] or stack.enter_context(testbed.free_name(NAME))
        where = setting_of(options | {"name": name})
        interruptible()
        scratch = Path(stack.enter_context(batch.scratch()))
        todo = batch.tasks(
            scenarios,
            where,
            (options["artifacts"] or scratch).absolute(),
            seed=options["seed"],
            repeat=options["repeat"],
            smaller=options["shrink"],
            capture=options["capture"],
        )
        until_s = time.monotonic() + 60 * options["minutes"] if options["minutes"] else math.inf
        for one in batch.run_all(todo, options["jobs"], tell, until_s):
            outcomes.append(one)
            aside.print(chaos_views.run_line(one.to_json(), len(todo)))
            _hand_out(options, outcomes)
    document = {"schema": 1, "runs": [_run_document(one, options["artifacts"]) for one in outcomes]}
    _show(document, options["form"], chaos_views.runs(document))
    counted = Counter(one.validity for one in outcomes)
    return 1 if counted[Validity.INVALID] else 3 if counted[Validity.UNKNOWN] else 0


def chosen(files: Sequence[Path], only: str | None) -> list[tuple[Path, Scenario]]:
    """Read the scenarios that are meant; with ``only``, those with faults of its kinds alone.

    Raises `UsageError` for a kind that there is not, and when no scenario is left.
    """
    from coloctl.chaos.faults import FAULTS
    from coloctl.chaos.scenario.file import load

    found = [(path, load(path)) for path in scenario_files(files)]
    if only is None:
        return found
    kinds = set(only.split(","))
    if unknown := sorted(kinds - FAULTS.keys()):
        raise UsageError(
            f"There is no fault '{unknown[0]}'.", hint=f"there are: {', '.join(sorted(FAULTS))}"
        )
    left = [one for one in found if kinds_of(one[1]) and kinds_of(one[1]) <= kinds]
    if not left:
        raise UsageError(
            f"No scenario injects faults of {only} alone.", hint="`coloctl chaos list -f json`"
        )
    return left


def kinds_of(scenario: Scenario) -> set[str]:
    """Return the kinds of the faults that the scenario may inject."""
    return {one.kind for fault in scenario.faults for one in fault.choices}


def possible(found: Sequence[tuple[Path, Scenario]], site: str) -> list[tuple[Path, Scenario]]:
    """Return the scenarios whose faults can all be injected there, and name the others."""
    from coloctl.chaos.faults import FAULTS

    possible = []
    for path, scenario in found:
        kinds = {kind for kind in kinds_of(scenario) if site not in FAULTS[kind].sites}
        if kinds:
            where = "on machines" if site == "machines" else "without --machines"
            click.echo(f"{path.stem} is left out: no {', '.join(sorted(kinds))} {where}.", err=True)
        else:
            possible.append((path, scenario))
    return possible


def _run_document(outcome: RunResult, artifacts: Path | None) -> dict[str, Any]:
    """Build the document of one run; a folder that is gone is left out."""
    return outcome.to_json() | ({} if artifacts else {"artifacts": None})


def _hand_out(options: dict[str, Any], outcomes: list[RunResult]) -> None:
    """Write the JUnit file and the page of all runs so far."""
    from coloctl.chaos.run import junit

    if options["junit"]:
        _write(options["junit"], junit.document(outcomes))
    if options["report"]:
        page = outcomes[0].artifacts
        assert page is not None
        _write(options["report"], (page / "report.html").read_text(encoding="utf-8"))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def _refuse(options: dict[str, Any], found: Sequence[object]) -> None:
    """Refuse options that do not fit together."""
    runs = len(found) * options["repeat"]
    if options["report"] and runs > 1:
        raise UsageError(
            f"--report is a page about one run, and these are {runs}.",
            hint="--artifacts FOLDER has a page for each",
        )
    if options["keep"] and runs > 1:
        raise UsageError(f"--keep keeps one pair, and these are {runs} runs.")
    if options["capture"] and not options["artifacts"]:
        raise UsageError("--capture needs a place for the packets.", hint="add --artifacts FOLDER")


def scenario_files(given: Sequence[Path]) -> list[Path]:
    """Find the files that are meant; raises `UsageError` when there are none."""
    folder = FOLDER if FOLDER.is_dir() else paths.data_dir("scenarios")
    found: list[Path] = []
    for path in given or (folder,):
        found += sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not found:
        where = " or ".join(map(str, given or (folder,)))
        raise UsageError(f"There is no scenario in {where}.", hint="name a file that ends in .toml")
    return found


def setting_of(options: dict[str, Any]) -> Any:
    """Build the setting of the runs; the process is root of a lab from here on."""
    from coloctl.chaos.run.testbed import Testbed
    from coloctl.cli.run_parts import engage, require_libraries
    from coloctl.lab import rootless
    from coloctl.lab.machines import require_root

    junit = ["junit"] if options.get("junit") else []
    require_libraries("a scenario", "clients", "page", *junit)
    parts = engage(options["qemu"])
    if options["on_machines"]:
        require_root(f"{typed_verb()} --machines")
    else:
        rootless.enter(lab=options["name"])
    return Testbed(
        qemu=parts.qemu,
        accel=parts.accel,
        guest=parts.guest,
        name=options["name"],
        keep=options["keep"],
        on="machines" if options["on_machines"] else "lab",
        tls=options["tls"],
    )


def tell(name: str, seed: int, sentence: str) -> None:
    """Print how far a run is."""
    dim, plain = ("\033[2m", "\033[0m") if _coloured() else ("", "")
    print(f"{dim}{name} {seed}: {sentence}{plain}", file=sys.stderr, flush=True)


def _coloured() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _show(document: dict[str, Any], form: str, drawn: Any) -> int:
    if form == "json":
        documents.print_json(document)
    else:
        render.console().print(drawn)
    return 0

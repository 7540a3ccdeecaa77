"""`coloctl bench`: how long a failover takes, what protection costs, whether it ever cries wolf."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console, Group, RenderableType

from coloctl import spec
from coloctl.chaos import bench as benches
from coloctl.chaos.crowd import Crowd, crowd
from coloctl.chaos.faults import Cause
from coloctl.chaos.overhead import Load
from coloctl.chaos.overhead import overhead as measure_overhead
from coloctl.chaos.setting import Setting
from coloctl.chaos.soak import Seen, Weather
from coloctl.chaos.soak import soak as sit_out
from coloctl.cli import bench_views, documents, render
from coloctl.cli.downloads import Bars
from coloctl.cli.options import format_option
from coloctl.cli.players import choose, engage, require_clients
from coloctl.errors import UsageError
from coloctl.lab import rootless

#: A bench's pair and its lab are called this, unless somebody chooses another name.
NAME = "bench"

F = TypeVar("F", bound=Callable[..., Any])

_spec_argument = click.argument(
    "spec_path",
    metavar="[SPEC]",
    required=False,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
_qemu_option = click.option(
    "--qemu", metavar="PATH_OR_NAME", help="This QEMU instead of one that is found."
)
_name_option = click.option(
    "--name", default=NAME, show_default=True, help="What the bench's pair and lab are called."
)
_clients_option = click.option(
    "--clients", type=click.IntRange(1, 64), default=4, show_default=True, help="How many append."
)
_file_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the JSON document there as well.",
)


def _delay_option(default_ms: int) -> Callable[[F], F]:
    return click.option(
        "--delay-ms",
        type=click.IntRange(50, 60_000),
        metavar="MS",
        help=f"Checkpoint period (default {default_ms}, or what SPEC says).",
    )


@click.group()
def bench() -> None:
    """Measure failovers, what protection costs, and false alarms.

    Everything is measured on a lab's guest with real clients. A SPEC lends its QEMU, accelerator,
    memory, checkpoint period, channel and detection; its own guest and disks are not touched.
    """


@bench.command()
@_spec_argument
@click.option(
    "--cause",
    type=click.Choice([str(cause) for cause in Cause]),
    default=str(Cause.KILL),
    show_default=True,
    help="kill and freeze hit a QEMU, link the wire between the hosts.",
)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@click.option("--early", is_flag=True, help="The fault comes in the first second of COLO.")
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the moments.")
@_delay_option(500)
@_clients_option
@_qemu_option
@_name_option
@_file_option
@format_option("pretty", "json")
def failover(**options: Any) -> int:
    """Break a pair, again and again: when it was noticed, when the guest ran, what was lost.

    Every run has a pair of its own and takes about 15 s. Exits with 1 when a run lost something,
    with 3 when a run says nothing, such as a fault that nobody noticed.
    """
    where = _setting(options, delay_ms=500)
    plan = benches.Plan(
        Cause(options["cause"]),
        **{key: options[key] for key in ("runs", "early", "seed", "clients")},
    )
    runs: list[Mapping[str, Any]] = []
    console = Console(stderr=True, highlight=False)

    def ran(run: Mapping[str, Any]) -> None:
        runs.append(run)
        console.print(bench_views.run_line(run, plan.runs))
        _save(options["output"], benches.document(where, plan, runs))

    benches.failover(where, plan, ran)
    document = benches.document(where, plan, runs)
    _show(document, options["form"], bench_views.failover(document))
    return benches.exit_code(runs)


@bench.command()
@_spec_argument
@click.option(
    "--delays",
    default="200,500,1000,5000",
    show_default=True,
    metavar="MS,MS,...",
    help="Checkpoint periods, one after the other.",
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Of each."
)
@_clients_option
@_qemu_option
@_name_option
@_file_option
@format_option("pretty", "json")
def overhead(**options: Any) -> int:
    """Serve the same clients without protection and with it, and count the difference."""
    load = Load(_delays(options["delays"]), options["seconds"], options["clients"])
    where = _setting({**options, "delay_ms": load.delays_ms[0]}, delay_ms=500)
    console = Console(stderr=True, highlight=False)
    document = measure_overhead(
        where, load, lambda row: console.print(bench_views.row_line(row), style="dim")
    )
    _save(options["output"], document)
    _show(document, options["form"], bench_views.overhead(document))
    return 0


@bench.command()
@_spec_argument
@click.option(
    "--minutes", type=click.FloatRange(0.1), default=20.0, show_default=True, help="How long."
)
@click.option(
    "--burners",
    type=click.IntRange(0, 256),
    default=os.cpu_count() or 1,
    show_default="one per processor",
    help="Processes that only use a processor.",
)
@_delay_option(200)
@_clients_option
@_qemu_option
@_name_option
@_file_option
@format_option("pretty", "json")
def soak(**options: Any) -> int:
    """Do nothing but load a protected pair: every failover is a false one.

    Exits with 1 when there was one, or when a client lost something.
    """
    where = _setting(options, delay_ms=200)
    weather = Weather(options["minutes"], options["burners"], options["clients"])
    console = Console(stderr=True, highlight=False)

    def tell(minutes: float, seen: Seen) -> None:
        console.print(bench_views.soak_line(minutes, weather.minutes, seen), style="dim")

    document = sit_out(where, weather, tell)
    _save(options["output"], document)
    _show(document, options["form"], bench_views.facts(document))
    return 0 if document["verdict"] == "valid" else 1 if document["verdict"] == "invalid" else 3


@bench.command()
@click.option("--pairs", type=click.IntRange(1, 100), default=10, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long."
)
@click.option(
    "--accel", type=click.Choice(["tcg", "kvm", "qtest"]), help="Instead of the one that is best."
)
@click.option("--delay-ms", type=click.IntRange(50, 60_000), default=1000, show_default=True)
@_qemu_option
@_name_option
@_file_option
@format_option("pretty", "json")
def supervisors(**options: Any) -> int:
    """Supervise many small pairs at once: what each supervisor costs, and false alarms.

    The guests are firmware with nothing to boot; no lab is needed. Exits with 1 when a pair failed
    over.
    """
    with Bars() as bars:
        binary, accel = choose(options["qemu"], bars)
    what = Crowd(
        binary,
        options["accel"] or accel,
        **{key: options[key] for key in ("name", "pairs", "seconds", "delay_ms")},
    )
    console = Console(stderr=True, highlight=False)
    document = crowd(what, lambda line: console.print(line, style="dim"))
    _save(options["output"], document)
    _show(document, options["form"], bench_views.facts(document))
    return 1 if document["false_failovers"] else 0


def _setting(options: Mapping[str, Any], *, delay_ms: int) -> Setting:
    """Where the bench plays; root of a lab from here on. What was asked for beats the SPEC."""
    require_clients("the bench")
    lent: dict[str, Any] = {}
    qemu, accel = options["qemu"], "auto"
    if options["spec_path"] is not None:
        pair = spec.load(options["spec_path"].absolute())
        qemu = qemu or (str(pair.guest.qemu) if pair.guest.qemu else None)
        accel, delay_ms = pair.guest.accel, pair.checkpoint.delay_ms
        lent = {
            "channel": str(pair.replication.channel),
            "memory": f"{pair.guest.memory_mib}MiB",
            "detection": {
                "heartbeat_ms": pair.detection.heartbeat_ms,
                "suspect_after_ms": pair.detection.suspect_after_ms,
            },
        }
    players = engage(qemu)
    rootless.enter(lab=options["name"])
    return Setting(
        qemu=players.qemu,
        accel=players.accel if accel == "auto" else accel,
        guest=players.guest,
        name=options["name"],
        delay_ms=options["delay_ms"] or delay_ms,
        **lent,
    )


def _delays(text: str) -> tuple[int, ...]:
    try:
        delays = tuple(int(word) for word in text.split(","))
    except ValueError:
        delays = ()
    if not delays or not all(50 <= delay <= 60_000 for delay in delays):
        raise UsageError(
            f"'{text}' is not a list of checkpoint periods.",
            hint="write milliseconds from 50 to 60000 with commas between, such as 200,1000",
        )
    return delays


def _save(path: Path | None, document: Mapping[str, Any]) -> None:
    """The document so far is in the file, whole."""
    if path is None:
        return
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def _show(document: Mapping[str, Any], form: str, drawn: RenderableType) -> None:
    if form == "json":
        documents.print_json(document)
    else:
        render.console().print(Group("", drawn))

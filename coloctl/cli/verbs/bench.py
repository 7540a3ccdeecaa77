"""Measure failovers, what protection costs, and false alarms: `coloctl bench`.

Called by `cli.verbs`; each command runs one module of `bench/` and draws its document.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click
from rich.console import Console

from coloctl.bench import dirtied as memories
from coloctl.bench import failover as benches
from coloctl.bench.circles import CircleFault, CirclesPlan
from coloctl.bench.circles import circles as go_round
from coloctl.bench.document import exit_code
from coloctl.bench.soak import SoakPlan
from coloctl.bench.soak import soak as run_soak
from coloctl.bench.stretches import OverheadPlan, PacePlan
from coloctl.bench.stretches import overhead as measure_overhead
from coloctl.bench.stretches import pace as measure_pace
from coloctl.bench.supervisors import SupervisorsPlan
from coloctl.bench.supervisors import supervisors as measure_supervisors
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.check.choose import choose
from coloctl.cli.bench_options import (
    amounts,
    clients_option,
    delay_option,
    delays,
    file_option,
    name_option,
    qemu_option,
    save,
    setting_of,
    show,
    spec_argument,
)
from coloctl.cli.options import format_option
from coloctl.cli.views import bench as bench_views
from coloctl.cli.views.downloads import Bars
from coloctl.errors import UsageError
from coloctl.interrupts import interruptible


@click.group()
def bench() -> None:
    """Measure failovers, what protection costs, and false alarms.

    Everything is measured on a lab's guest with real clients. A SPEC lends its QEMU, accelerator,
    memory, checkpoint period, channel and detection; its own guest and disks are not touched.
    """
    interruptible()


@bench.command()
@spec_argument
@click.option(
    "--cause",
    type=click.Choice([str(cause) for cause in benches.Cause]),
    default=str(benches.Cause.KILL),
    show_default=True,
    help="kill and freeze hit a QEMU, link the wire between the hosts, power-off a machine.",
)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@click.option(
    "--machines",
    "on_machines",
    is_flag=True,
    help="On machines of their own that are reached over ssh; needs root.",
)
@click.option("--early", is_flag=True, help="The fault comes in the first second of COLO.")
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the moments.")
@delay_option(500)
@clients_option
@qemu_option
@name_option
@file_option
@format_option("pretty", "json")
def failover(**options: Any) -> int:
    """Break a pair, again and again: when it was noticed, when the guest ran, what was lost.

    Every run has a pair of its own and takes about 15 s. Exits with 1 when a run lost something,
    with 3 when a run says nothing, such as a fault that was not noticed.
    """
    cause = benches.Cause(options["cause"])
    if cause is benches.Cause.SECONDARY_POWER_OFF and not options["on_machines"]:
        raise UsageError(f"--cause {cause} needs machines.", hint="add --machines")
    where = setting_of(options, delay_ms=500)
    plan = benches.FailoverPlan(
        cause,
        **{key: options[key] for key in ("runs", "early", "seed", "clients")},
    )
    runs: list[Mapping[str, Any]] = []
    console = Console(stderr=True, highlight=False)

    def ran(run: Mapping[str, Any]) -> None:
        runs.append(run)
        console.print(bench_views.run_line(run, plan.runs))
        save(options["output"], benches.document(where, plan, runs))

    benches.failover(where, plan, ran)
    document = benches.document(where, plan, runs)
    show(document, options["form"], bench_views.failover(document))
    return exit_code(run["verdict"] for run in runs)


@bench.command()
@spec_argument
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
@click.option(
    "--tls",
    type=click.Choice(["off", "on", "off,on", "on,off"]),
    default="off",
    show_default=True,
    help="Encrypt every wire; both: a pair of each kind, one after the other.",
)
@click.option(
    "--dirty",
    metavar="MIB,MIB,...",
    help="Instead: the pause of a checkpoint that finds so much memory changed. With both kinds "
    "of --tls the two pairs take turns, and the ratio of their pauses is shown.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="How often all of --dirty.",
)
@clients_option
@qemu_option
@name_option
@file_option
@format_option("pretty", "json")
def overhead(**options: Any) -> int:
    """Serve the same clients without protection and with it, and count the difference."""
    tls = tuple(word == "on" for word in options["tls"].split(","))
    if options["dirty"]:
        return _dirtied(options, tls)
    plan = OverheadPlan(delays(options["delays"]), options["seconds"], options["clients"], tls)
    where = setting_of({**options, "delay_ms": plan.delays_ms[0]}, delay_ms=500)
    console = Console(stderr=True, highlight=False)
    document = measure_overhead(
        where, plan, lambda row: console.print(bench_views.row_line(row), style="dim")
    )
    save(options["output"], document)
    show(document, options["form"], bench_views.overhead(document))
    return 0


def _dirtied(options: Mapping[str, Any], tls: tuple[bool, ...]) -> int:
    """Run `coloctl bench overhead --dirty`; the first of ``--delays`` that was given counts."""
    given = click.get_current_context().get_parameter_source("delays")
    own = given is not click.core.ParameterSource.DEFAULT
    delay_ms = delays(options["delays"])[0] if own else memories.DirtyPlan.delay_ms
    plan = memories.DirtyPlan(
        amounts(options["dirty"]), tls, options["rounds"], options["seconds"], delay_ms,
        options["clients"],
    )  # fmt: skip
    where = setting_of({**options, "delay_ms": delay_ms}, delay_ms=delay_ms)
    console = Console(stderr=True, highlight=False)
    document = memories.dirtied(
        where, plan, lambda row: console.print(bench_views.turn_line(row), style="dim")
    )
    save(options["output"], document)
    show(document, options["form"], bench_views.dirtied(document))
    return 0


@bench.command()
@spec_argument
@click.option(
    "--seconds", type=click.FloatRange(1), default=40.0, show_default=True, help="Of each way."
)
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=1, show_default=True, help="How often both."
)
@click.option(
    "--burst-s", type=click.FloatRange(0.1), default=3.0, show_default=True, help="Clients append."
)
@click.option(
    "--idle-s", type=click.FloatRange(0), default=7.0, show_default=True, help="They are silent."
)
@click.option(
    "--pause-ms", type=click.FloatRange(0), default=2.0, show_default=True, help="After a reply."
)
@delay_option(1000)
@clients_option
@qemu_option
@name_option
@file_option
@format_option("pretty", "json")
def pace(**options: Any) -> int:
    """Serve clients that come in bursts, at a fixed checkpoint delay and at an adaptive one."""
    where = setting_of(options, delay_ms=1000)
    keys = ("seconds", "rounds", "clients", "pause_ms", "burst_s", "idle_s")
    plan = PacePlan(**{key: options[key] for key in keys})
    console = Console(stderr=True, highlight=False)
    document = measure_pace(
        where, plan, lambda row: console.print(bench_views.pace_line(row), style="dim")
    )
    save(options["output"], document)
    show(document, options["form"], bench_views.pace(document))
    return 0


@bench.command()
@spec_argument
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
@delay_option(200)
@clients_option
@qemu_option
@name_option
@file_option
@format_option("pretty", "json")
def soak(**options: Any) -> int:
    """Load a protected pair and do nothing else to it: every failover is a false one.

    Exits with 1 when there was one, or when a client lost something.
    """
    where = setting_of(options, delay_ms=200)
    plan = SoakPlan(options["minutes"], options["burners"], options["clients"])
    console = Console(stderr=True, highlight=False)

    def tell(minutes: float, seen: Chronicle) -> None:
        console.print(bench_views.soak_line(minutes, plan.minutes, seen), style="dim")

    document = run_soak(where, plan, tell)
    save(options["output"], document)
    show(document, options["form"], bench_views.facts(document))
    return exit_code([document["verdict"]])


@bench.command()
@spec_argument
@click.option("--circles", "number", type=click.IntRange(1), default=10, show_default=True)
@click.option(
    "--blow",
    type=click.Choice(["alternate", *map(str, CircleFault)]),
    default="alternate",
    show_default=True,
    help="Which QEMU is killed, the primary's and the secondary's in turn unless one is chosen; "
    "or a switchover instead.",
)
@click.option("--memory", metavar="SIZE", help="The guest's memory, such as 512MiB.")
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the moments.")
@delay_option(500)
@clients_option
@qemu_option
@name_option
@file_option
@format_option("pretty", "json")
def circles(**options: Any) -> int:
    """Break one pair again and again, each time when it has protected itself again.

    Clients connect in every phase and stay to the end. Exits with 1 when something was lost, a
    connection broke, or a QEMU holds more after one circle than after another.
    """
    where = setting_of(options, delay_ms=500)
    if options["memory"]:
        where = replace(where, memory=options["memory"])
    turns = (CircleFault.PRIMARY, CircleFault.SECONDARY)
    if options["blow"] != "alternate":
        turns = (CircleFault(options["blow"]),) * 2
    faults = tuple(turns[n % 2] for n in range(options["number"]))
    plan = CirclesPlan(faults, options["clients"], options["seed"])
    console = Console(stderr=True, highlight=False)
    document = go_round(
        where, plan, lambda turn: console.print(bench_views.circle_line(turn, len(faults)))
    )
    save(options["output"], document)
    show(document, options["form"], bench_views.circles(document))
    return exit_code([document["verdict"]])


@bench.command()
@click.option("--pairs", type=click.IntRange(1, 100), default=10, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long."
)
@click.option(
    "--accel", type=click.Choice(["tcg", "kvm", "qtest"]), help="Instead of the one that is best."
)
@click.option("--delay-ms", type=click.IntRange(50, 60_000), default=1000, show_default=True)
@qemu_option
@name_option
@file_option
@format_option("pretty", "json")
def supervisors(**options: Any) -> int:
    """Supervise many small pairs at once: what each supervisor costs, and false alarms.

    The guests are firmware with nothing to boot; no lab is needed. Exits with 1 when a pair failed
    over.
    """
    with Bars() as bars:
        binary, accel = choose(options["qemu"], bars.report)
    plan = SupervisorsPlan(
        binary,
        options["accel"] or accel,
        **{key: options[key] for key in ("name", "pairs", "seconds", "delay_ms")},
    )
    console = Console(stderr=True, highlight=False)
    document = measure_supervisors(plan, lambda line: console.print(line, style="dim"))
    save(options["output"], document)
    show(document, options["form"], bench_views.facts(document))
    return 1 if document["false_failovers"] else 0

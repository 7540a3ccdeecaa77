"""Show the whole demonstration on one machine, drawn while it happens: `coloctl demo`.

Called by `cli.verbs`; `cli.demo_run` or `cli.demo_machines` runs it on a `chaos.run.testbed` and
reports each step to the `DemoScreen` here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coloctl.chaos.run.testbed import Testbed
from coloctl.cli import demo_machines, demo_run
from coloctl.cli.demo_machines import MachinesPlan
from coloctl.cli.demo_run import DemoPlan
from coloctl.cli.options import format_option, typed_verb
from coloctl.cli.run_parts import engage, require_libraries
from coloctl.cli.views import pair as pair_views
from coloctl.cli.views import plain as documents
from coloctl.cli.views import render
from coloctl.errors import UsageError
from coloctl.interrupts import interruptible
from coloctl.lab import rootless
from coloctl.lab.machines import require_root
from coloctl.model.view import PairView

#: The demo's pair and its lab are called this, unless --name chooses another.
NAME = "demo"


@click.command()
@click.option(
    "--kill",
    type=click.Choice(["primary", "secondary"]),
    default="primary",
    show_default=True,
    help="Whose QEMU is killed in the middle of a checkpoint.",
)
@click.option(
    "--machines",
    "on_machines",
    is_flag=True,
    help="On machines of their own that are reached over ssh and switched off in turn; needs root.",
)
@click.option(
    "--name", default=NAME, show_default=True, help="What the demo's pair and its lab are called."
)
@click.option("--keep", is_flag=True, help="Leave the survivor and the lab for you to explore.")
@click.option(
    "--clients", type=click.IntRange(1, 64), default=4, show_default=True, help="How many append."
)
@click.option(
    "--delay",
    "delay_ms",
    type=click.IntRange(50, 60_000),
    default=500,
    show_default=True,
    metavar="MS",
    help="Checkpoint period.",
)
@click.option(
    "--channel",
    type=click.Choice(["fd", "tcp"]),
    default="fd",
    show_default=True,
    help="How the migration stream travels.",
)
@click.option("--qemu", metavar="PATH_OR_NAME", help="This QEMU instead of one that is found.")
@format_option("pretty", "json")
def demo(**options: Any) -> int:
    """Protect a real guest, talk to it, kill one of its hosts, and show that nothing was lost.

    No command is given: the pair fails over by itself. Builds a lab of network namespaces, boots a
    small Linux with redis in it, and takes everything away again. It needs about a minute, and no
    rights of yours but user namespaces.

    With --machines the two nodes are machines of their own: the secondary's loses its power and
    comes back, roles are switched, and the other one is shut down for an upgrade.
    """
    if options["on_machines"] and (options["keep"] or options["kill"] != "primary"):
        raise UsageError("With --machines no QEMU is killed, and nothing is kept.")
    require_libraries("the demo", "clients")
    as_json = options["form"] == "json"
    console = Console(stderr=as_json, highlight=False)
    if options["on_machines"]:
        require_root(f"{typed_verb()} --machines")
    interruptible()
    where = _setting(options)
    if not options["on_machines"]:
        rootless.enter(lab=where.name)
    with DemoScreen(console) as screen:
        if options["on_machines"]:
            document = demo_machines.run(where, MachinesPlan(options["clients"]), screen)
        else:
            plan = DemoPlan(options["kill"], options["clients"])
            document = demo_run.run(where, plan, screen)
    if as_json:
        documents.print_json(document)
    else:
        console.print(Group("", _verdict(document), *_farewell(where.name, document)))
    return 0 if document["verdict"] == "valid" and not document["left_behind"] else 1


def _setting(options: Mapping[str, Any]) -> Testbed:
    """Build the setting of the demonstration; raises what `run_parts.engage` raises."""
    return Testbed(
        **engage(options["qemu"])._asdict(),
        **{key: options[key] for key in ("name", "keep", "delay_ms", "channel")},
        on="machines" if options["on_machines"] else "lab",
    )


class DemoScreen:
    """Draws the demonstration: the pair's live status on a terminal, a line per step elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def step(self, title: str) -> None:
        """See `Screen.step`."""
        line = Text.assemble((f"{time.monotonic() - self._began:6.1f} s  ", "dim"), title)
        self._console.print(line)

    def view(self, view: PairView, acknowledged: int) -> None:
        """Draw the pair's state as it is now."""
        if self._live.is_started:
            count = Text(f"{acknowledged} records acknowledged", "green")
            self._live.update(Group("", pair_views.status(view), count))


#: The meaning of each moment in the demonstration's timeline.
MOMENTS: Mapping[str, str] = {
    "fault": "SIGKILL in the middle of a checkpoint",
    "detected_ms": "the fault is detected",
    "fenced_ms": "the lost node is proven dead",
    "promoted_ms": "the survivor has taken its promotion",
    "running_ms": "its guest runs",
    "first_reply_ms": "the first client is answered",
}


def _verdict(document: Mapping[str, Any]) -> RenderableType:
    """Draw the timeline, what clients noticed, and whether anything was lost."""
    moments = render.plain_table("", "MOMENT")
    known = {name: document["timeline"][name] for name in MOMENTS}
    machines = document.get("machines", ())
    words_of = {**MOMENTS, **ON_MACHINES} if machines else MOMENTS
    # QEMU may announce that the guest runs before it answers the command.
    for name in sorted(known, key=lambda one: (known[one] is None, known[one])):
        at_ms, words = known[name], words_of[name]
        moments.add_row(Text("-" if at_ms is None else f"{at_ms:6.1f} ms", "bold"), words)
    acks, connections = document["acks"], document["connections"]
    facts = Table.grid(padding=(0, 3, 0, 0))
    for what, value in (
        ("records acknowledged", f"{acks['acknowledged']}, lost: {acks['lost']}"),
        ("connections", f"{connections['opened']}, broken: {connections['broken']}"),
        ("failed over", _failed_over(document["failover"])),
        ("longest silence at the fault", render.milliseconds(document["outage_ms"])),
        ("longest while being protected", render.milliseconds(document["protect_gap_ms"])),
        ("checkpoints", f"{document['checkpoints']['count']}, median pause "
         f"{render.milliseconds(document['checkpoints']['pause_ms_p50'])}"),
    ):  # fmt: skip
        facts.add_row(Text(what, "dim"), value)
    for step in machines:
        facts.add_row(Text(STEP_WORDS[step["step"]], "dim"), step_line(step))
    good = document["verdict"] == "valid"
    closing = Text(f"verdict: {document['verdict']}", "bold green" if good else "bold red")
    reasons = [
        Text(f"  {one['check']}: {one['because']}", "dim" if one["verdict"] == "valid" else "red")
        for one in document["checks"]
    ]
    left = [Text(f"  left behind: {one}", "red") for one in document["left_behind"]]
    return Group(moments, "", facts, "", closing, *reasons, *left)


#: The moments that differ on machines: no proof comes from a machine that is off.
ON_MACHINES: Mapping[str, str] = {
    "fault": "machine hv2 loses its power",
    "fenced_ms": "machine hv2 is out of reach: hv1 may go on alone by its claim",
}
#: The steps on machines, as the table names them.
STEP_WORDS: Mapping[str, str] = {
    "off": "machine hv2 without power",
    "switch": "roles switched",
    "upgrade": "machine hv1 shut down",
}


def step_line(step: Mapping[str, Any]) -> str:
    """Return for how long a machine was off, and when the guest was protected again."""
    parts = [] if step["off_s"] is None else [f"for {step['off_s']:.1f} s"]
    parts.append(f"longest silence {render.milliseconds(step['outage_ms'])}")
    if step["protected_after_s"] is not None:
        parts.append(f"protected again after {step['protected_after_s']:.1f} s")
    if step["copied"] is not None:
        copied = step["copied"]
        parts.append(f"{copied['sent'] / 2**20:.1f} MiB copied ({copied['method']})")
    return ", ".join(parts)


def _failed_over(failover: Mapping[str, Any]) -> str:
    """Return whether an operator asked for the failover, and what the fault was taken for."""
    if failover["by"] == "operator":
        return "because an operator asked for it"
    return f"by itself ({failover['cause'] or 'no cause was given'})"


def _farewell(name: str, document: Mapping[str, Any]) -> tuple[RenderableType, ...]:
    """Draw how to go on with a pair that was kept, its pair file and disks in a folder."""
    folder, survivor = document["kept"], document["failover"]["survivor"]
    if folder is None:
        return ()
    rows = Table.grid(padding=(0, 2))
    for command, meaning in (
        (f"coloctl status {name}", "how the pair stands"),
        (f"coloctl qmp {name} {survivor} -- query-status", "ask QEMU itself"),
        (f"coloctl start {folder}/{name}.toml", "protect it again"),
        (f"coloctl stop {name}", "shut the guest down"),
        (f"coloctl lab down --name {name}", "take the lab away"),
        (f"rm -r {folder}", "and the disks"),
    ):
        rows.add_row(Text(f"  {command}", "bold"), meaning)
    return ("", f"The pair '{name}' is still here:", rows)

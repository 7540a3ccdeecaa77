"""Define `coloctl lab`: the namespaces in which demo and tests run, their guest and their QEMU.

Calls `lab.network` and `lab.rootless`; guest and QEMU are in `cli.verbs.lab_goods`, machines in
`cli.verbs.lab_machines`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from coloctl.cli.options import format_option
from coloctl.cli.verbs import lab_goods, lab_machines
from coloctl.cli.verbs.lab_goods import suggest, typed
from coloctl.errors import LabError, PairBusy, UsageError
from coloctl.lab import layout, rootless

if TYPE_CHECKING:
    from coloctl.lab.network import Lab

_lab_option = click.option(
    "--name",
    "--lab",
    "name",
    default=layout.DEFAULT,
    show_default=True,
    help="Which lab; several stand side by side.",
)
_link_argument = click.argument("link", metavar="LINK", type=click.Choice(list(layout.WIRES)))


@click.group()
def lab() -> None:
    """Set up namespaces, guest and QEMU for demo and tests.

    A lab is two hosts, a client and the switch between them: four network namespaces of this
    machine. Without root it stands in a user namespace of yours, which later verbs find by
    themselves.
    """


@lab.command()
@_lab_option
@format_option("pretty", "json")
def up(name: str, form: str) -> None:
    """Build a lab, or mend one."""
    rootless.enter(lab=name)
    from coloctl.lab.network import Lab

    standing = Lab.up(name)
    rootless.hold(name)
    if form == "json":
        click.echo(json.dumps(standing.describe()))
        return
    steps = suggest(
        (typed("guest --pair web.toml", name), "a guest for it, and a pair file"),
        ("coloctl start web.toml", "runs that guest on both hosts"),
        (typed("exec client -- sh", name), "a shell on the client"),
        (typed("down", name), "removes the lab"),
    )
    click.echo("\n".join((standing.drawing(), *steps)))


@lab.command()
@_lab_option
@click.option("--force", is_flag=True, help="End all processes that still run in the lab.")
@format_option("pretty", "json")
def down(name: str, force: bool, form: str) -> None:
    """Remove a lab without a trace."""
    stands = rootless.join(layout.check_name(name))
    deeds: list[str] = []
    if stands:
        from coloctl.lab.network import Lab, labs

        stands = name in labs()
        doomed = Lab(name)
        if stands and not force:
            _refuse_tenants(doomed)
        deeds = doomed.down()
    rootless.release(name)
    if form == "json":
        click.echo(json.dumps({"schema": 1, "name": name, "stood": stands, "ended": deeds}))
        return
    for deed in deeds:
        click.echo(deed)
    click.echo(f"The lab {name} is gone." if stands else f"There was no lab {name}.")


@lab.command("list")
@format_option("pretty", "json")
def list_labs(form: str) -> None:
    """List the labs of this machine, or of this user."""
    held = rootless.held()
    found = []
    if (held and rootless.join(held[0])) or not rootless.needed():
        from coloctl.lab.network import labs

        found = [_summary(name) for name in labs()]
    if form == "json":
        click.echo(json.dumps({"schema": 1, "labs": found}))
    elif not found:
        click.echo("There is no lab. Build one: coloctl lab up")
    else:
        rows = [
            [one["name"], one["state"], ", ".join(one["impaired"]) or "-", str(one["processes"])]
            for one in found
        ]
        _table(["Lab", "State", "Links not up", "Processes"], rows)


@lab.command()
@_lab_option
@format_option("pretty", "json")
def show(name: str, form: str) -> None:
    """Draw a lab: its machines, links and who runs in them."""
    standing = _open(name)
    if form == "json":
        click.echo(json.dumps(standing.describe()))
        return
    click.echo(standing.drawing())
    for role, running in standing.processes().items():
        for pid, command in running.items():
            click.echo(f"  {role}: {command} ({pid})")


@lab.command()
@_link_argument
@_lab_option
@click.option("--carrier", is_flag=True, help="Pull the plug: both ends notice at once.")
@format_option("pretty", "json")
def cut(link: str, name: str, carrier: bool, form: str) -> None:
    """Stop all traffic of a link, without a sign to either end.

    LINK is replication, lan-a, lan-b or client.
    """
    _change(name, link, lambda standing: standing.link(link).cut(carrier=carrier), form)


@lab.command()
@_link_argument
@_lab_option
@format_option("pretty", "json")
def heal(link: str, name: str, form: str) -> None:
    """Restore all traffic of a link, after any change to it.

    LINK is replication, lan-a, lan-b or client.
    """
    _change(name, link, lambda standing: standing.link(link).heal(), form)


@lab.command(
    "exec",
    context_settings={"allow_interspersed_args": False},
)
@_lab_option
@click.argument("machine", metavar="MACHINE", type=click.Choice(list(layout.ROLES)))
@click.argument("command", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, machine: str, command: tuple[str, ...]) -> int:
    """Run a command on a machine of the lab; its exit code is this one's.

    MACHINE is host-a, host-b, client or lan. Options for this verb stand before it.
    """
    standing = _open(name)
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise UsageError("There is no command to run.", hint="coloctl lab exec client -- COMMAND")
    try:
        process = standing.popen(words, machine)
    except OSError as error:
        raise LabError(f"{words[0]} cannot be run: {error.strerror}.") from None
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue  # the terminal signalled the command too, which decides how it ends
        return 128 - code if code < 0 else code


lab.add_command(lab_goods.guest)
lab.add_command(lab_goods.qemu)
lab.add_command(lab_goods.plugin)
lab.add_command(lab_machines.machines)


def _open(name: str) -> Lab:
    """Open the lab of that name, in the user namespace that holds it."""
    there = rootless.join(layout.check_name(name))
    from coloctl.lab.network import Lab

    if not there:
        raise LabError(f"The lab {name} is not up.", hint=typed("up", name))
    return Lab.open(name)


def _change(name: str, link: str, change: Callable[[Lab], None], form: str) -> None:
    standing = _open(name)
    change(standing)
    state = standing.link(link).state()
    if form == "json":
        click.echo(json.dumps({"schema": 1, "name": name, "link": link, "state": state}))
    else:
        click.echo(f"{link} is {state}.")


def _refuse_tenants(doomed: Lab) -> None:
    """Raise `PairBusy` when processes run in the lab, most likely those of a pair."""
    running = [
        f"{command} ({pid}) on {role}"
        for role, processes in doomed.processes().items()
        for pid, command in processes.items()
    ]
    if running:
        raise PairBusy(
            f"The lab {doomed.name} is in use: {', '.join(running)}.",
            hint="stop its pair first (`coloctl list` shows pairs), or end them with --force",
        )


def _summary(name: str) -> dict[str, Any]:
    from coloctl.lab.network import Lab

    processes = sum(map(len, Lab(name).processes().values()))
    try:
        links = Lab.open(name).describe()["links"]
    except LabError:
        # A namespace or a device is missing: an `up` that was killed.
        return {"name": name, "state": "half built", "impaired": [], "processes": processes}
    impaired = [f"{link} {one['state']}" for link, one in links.items() if one["state"] != "up"]
    return {"name": name, "state": "up", "impaired": impaired, "processes": processes}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        click.echo(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )

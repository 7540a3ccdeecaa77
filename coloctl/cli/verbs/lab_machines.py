"""Define `coloctl lab machines`: three machines in one, to be crashed, frozen and cut off.

Called by `cli.verbs.lab`; calls `lab.machines`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coloctl.cli.options import format_option, typed_verb
from coloctl.cli.verbs.lab_goods import require_pair_name, suggest
from coloctl.errors import PairBusy, UsageError
from coloctl.lab import machine_layout
from coloctl.lab.machine_layout import MACHINES, NAMES

if TYPE_CHECKING:
    from coloctl.lab.machine import LabMachine
    from coloctl.lab.machines import Machines

_NETWORKS = tuple(dict.fromkeys((*MACHINES.networks, *MACHINES.wires)))

_lab_option = click.option(
    "--name",
    "--lab",
    "name",
    default=machine_layout.DEFAULT,
    show_default=True,
    help="Which machines; several sets stand side by side.",
)
_machine_argument = click.argument("machine", metavar="MACHINE", type=click.Choice(NAMES))
_COMMAND = click.argument("command", metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED)
_OPTIONS_FIRST = {"allow_interspersed_args": False}


@click.group()
def machines() -> None:
    """Set up machines that share nothing but the kernel: hv1, hv2 and witness.

    Each has its own network, mounts, processes, host name, boot id, /run, /tmp and
    /var/lib/coloctl, and answers ssh on a management network. It needs root.
    """


@machines.command()
@click.option("--clocks", is_flag=True, help="Set their monotonic clocks weeks apart.")
@_lab_option
@format_option("pretty", "json")
def up(clocks: bool, name: str, form: str) -> None:
    """Build the machines, or mend them: all on, all networks whole."""
    from coloctl.cli.views.downloads import Bars
    from coloctl.lab.machines import Machines, require_root

    require_root(typed_verb())
    with Bars() as bars:
        standing = Machines.up(name, clocks=clocks, report=bars.report)
    if form == "json":
        click.echo(json.dumps(standing.describe()))
        return
    steps = suggest(
        (_typed("ssh hv1", name), "a shell on the first machine"),
        (_typed("crash hv2", name), "switches the second one off"),
        (_typed("down", name), "removes the machines"),
    )
    click.echo("\n".join((*_lines(standing), *steps)))


@machines.command()
@_lab_option
@click.option("--force", is_flag=True, help="End all programs that still run in the machines.")
@format_option("pretty", "json")
def down(name: str, force: bool, form: str) -> None:
    """Remove the machines without a trace."""
    from coloctl.lab.machines import Machines, labs, require_root

    require_root(typed_verb())
    stood = name in labs()
    doomed = Machines(name)
    if not force and (running := doomed.busy()):
        raise PairBusy(
            f"The machines {name} are in use: {', '.join(running)}.",
            hint="stop their pair first, or end all programs with --force",
        )
    ended = doomed.down()
    if form == "json":
        click.echo(json.dumps({"schema": 1, "name": name, "stood": stood, "ended": ended}))
        return
    for one in ended:
        click.echo(one)
    click.echo(
        f"The machines {name} are gone." if stood else f"There were no machines called {name}."
    )


@machines.command("list")
@format_option("pretty", "json")
def list_machines(form: str) -> None:
    """List the sets of machines of this system."""
    from coloctl.lab.machines import Machines, labs, require_root

    require_root(typed_verb())
    found = {
        name: {one: str(machine.state()) for one, machine in Machines(name).machines.items()}
        for name in labs()
    }
    if form == "json":
        sets = [{"name": name, "machines": states} for name, states in found.items()]
        click.echo(json.dumps({"schema": 1, "labs": sets}))
    elif not found:
        click.echo("There are no machines. Build them: coloctl lab machines up")
    for name, states in found.items() if form == "pretty" else ():
        click.echo(f"{name}: " + ", ".join(f"{one} {state}" for one, state in states.items()))


@machines.command()
@_lab_option
@format_option("pretty", "json")
def show(name: str, form: str) -> None:
    """Show the machines, their addresses, programs and networks."""
    standing = _open(name)
    if form == "json":
        click.echo(json.dumps(standing.describe()))
    else:
        click.echo("\n".join(_lines(standing)))


def _switch(verb: str, text: str, act: Callable[[LabMachine], None], done: str) -> None:
    """Add a verb that does something to one machine."""

    @machines.command(verb, help=text)
    @_machine_argument
    @_lab_option
    @format_option("pretty", "json")
    def command(machine: str, name: str, form: str) -> None:
        one = _open(name).machine(machine)
        act(one)
        if form == "json":
            document = {"schema": 1, "name": name, "machine": machine, "state": str(one.state())}
            click.echo(json.dumps(document))
        else:
            click.echo(f"{machine} {done}.")


def _reboot(machine: LabMachine) -> None:
    machine.shutdown()
    machine.boot()


_switch("boot", "Switch a machine on.", lambda one: one.boot(), "is up")
_switch(
    "crash",
    "Switch a machine off at once.\n\nNothing of it reaches the others any more, no FIN and no "
    "reset. What it kept in /run and /tmp is lost, its disks and /var/lib/coloctl are kept.",
    lambda one: one.crash(),
    "is off",
)
_switch("shutdown", "End a machine's programs and switch it off.", lambda m: m.shutdown(), "is off")
_switch("reboot", "Shut a machine down and switch it on again.", _reboot, "is up again")
_switch(
    "freeze",
    "Stop all programs of a machine.\n\nIts kernel still acknowledges what it receives; cut its "
    "networks too for a machine that is silent.",
    lambda one: one.freeze(),
    "is frozen",
)
_switch("thaw", "Let the programs of a machine go on.", lambda one: one.thaw(), "is up")


@machines.command()
@click.argument("network", metavar="NETWORK", type=click.Choice(_NETWORKS))
@click.option("--at", "machine", type=click.Choice(NAMES), help="Only that machine's link of it.")
@click.option("--sends", "way", flag_value="sends", help="Only what that machine sends.")
@click.option("--receives", "way", flag_value="receives", help="Only what that machine receives.")
@click.option("--carrier", is_flag=True, help="Pull the plug: both ends notice at once.")
@_lab_option
@format_option("pretty", "json")
def cut(
    *, network: str, machine: str | None, way: str | None, carrier: bool, name: str, form: str
) -> None:
    """Stop all traffic of a network, without a sign to either end.

    NETWORK is replication, guest or management, or one of their links.
    """
    if way is not None and machine is None:
        raise UsageError(f"--{way} needs a machine.", hint=f"add --at hv1 to --{way}")
    standing = _open(name)
    _changed(standing, standing.cut(network, at=machine, way=way, carrier=carrier), form)


@machines.command()
@click.argument("network", metavar="[NETWORK]", required=False, type=click.Choice(_NETWORKS))
@_lab_option
@format_option("pretty", "json")
def heal(network: str | None, name: str, form: str) -> None:
    """Restore all traffic of a network, or of all networks."""
    standing = _open(name)
    _changed(standing, standing.heal(network), form)


@machines.command("exec", context_settings=_OPTIONS_FIRST)
@_lab_option
@_machine_argument
@_COMMAND
def execute(name: str, machine: str, command: tuple[str, ...]) -> int:
    """Run a command in a machine, not through ssh; its exit code is this one's.

    Options for this verb stand before MACHINE.
    """
    words = command[1:] if command[:1] == ("--",) else command
    if not words:
        raise UsageError("There is no command to run.", hint="coloctl lab machines exec hv1 -- sh")
    return _exit_code(_open(name).machine(machine).popen(words))


@machines.command(context_settings=_OPTIONS_FIRST)
@_lab_option
@_machine_argument
@_COMMAND
def ssh(name: str, machine: str, command: tuple[str, ...]) -> int:
    """Log in to a machine by ssh from the machine witness, or run a command there.

    Options for this verb stand before MACHINE.
    """
    standing = _open(name)
    return _exit_code(subprocess.Popen([*standing.ssh(), machine, *command]))


@machines.command()
@_lab_option
@format_option("pretty", "json")
def config(name: str, form: str) -> None:
    """Print the ssh that reaches the machines: export "$(coloctl lab machines config)"."""
    standing = _open(name)
    if form == "json":
        document = {"ssh": standing.ssh(), "ssh_config": str(standing.ssh_config)}
        click.echo(json.dumps({"schema": 1, "name": name, **document}))
    else:
        click.echo(f"COLOCTL_SSH={shlex.join(standing.ssh())}")


@machines.command(short_help="Write a pair file for the lab's guest.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--pair", "pair_name", help="Name of that pair.  [default: the file's]")
@click.option("--force", is_flag=True, help="Replace a pair file and disks that are there.")
@_lab_option
@format_option("pretty", "json")
def pair(*, file: Path, pair_name: str | None, force: bool, name: str, form: str) -> None:
    """Write a pair file for the lab's guest on hv1 and hv2, and make its disks in both.

    The guest and a QEMU that holds COLO are fetched where they are missing.
    """
    from coloctl.check.choose import choose_qemu, lab_guest
    from coloctl.cli.views.downloads import Bars
    from coloctl.host import locks
    from coloctl.lab import machine_pair

    pair_name = pair_name or file.stem
    require_pair_name(pair_name)
    standing = _open(name)
    disks = machine_pair.disks(pair_name, standing)
    there = [str(file)] if file.exists() else []
    there += [
        f"{machine_pair.image_of(pair_name)} of {one}" for one in disks if disks[one].exists()
    ]
    if there and not force:
        raise UsageError(
            f"{there[0]} is there already.",
            hint="name another file, or replace the pair file and its disks with --force",
        )
    with Bars() as bars:
        guest, choice = lab_guest(bars.report), choose_qemu(bars.report)
    for disk in disks.values():
        locks.require_free(disk)
    build = choice.build
    machine_pair.write(
        file, name=pair_name, lab=standing, guest=guest, qemu=build.binary, accel=choice.accel
    )
    if form == "json":
        document = {"pair": pair_name, "file": str(file), "qemu": build.version}
        click.echo(json.dumps({"schema": 1, "name": name, **document}))
        return
    click.echo(f"{file} is written, with a disk in each machine.")
    steps = suggest(
        (f'export "$({_typed("config", name)})"', "the ssh that reaches the machines"),
        (f"coloctl start {shlex.quote(str(file))}", "runs the guest on both"),
    )
    click.echo("\n".join(steps))


def _open(name: str) -> Machines:
    from coloctl.lab.machines import Machines, require_root

    require_root(typed_verb())
    return Machines.open(name)


def _exit_code(process: subprocess.Popen[Any]) -> int:
    """Wait for a command that has the terminal, and return its exit code as a shell does."""
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue  # the terminal signalled the command too, which decides how it ends
        return 128 - code if code < 0 else code


def _changed(standing: Machines, links: Sequence[str], form: str) -> None:
    states = {link: standing.link(link).state() for link in links}
    if form == "json":
        click.echo(json.dumps({"schema": 1, "name": standing.name, "links": states}))
    for link, state in states.items() if form == "pretty" else ():
        click.echo(f"{link} is {state}.")


def _lines(standing: Machines) -> list[str]:
    """Format the machines and their networks for people."""
    document = standing.describe()
    rows = [
        f"  {name:<8} {one['state']:<7} {one['address']:<11} {one['programs']} programs"
        for name, one in document["machines"].items()
    ]
    networks = [
        f"  {name:<12} " + ", ".join(f"{link} {state}" for link, state in links.items())
        for name, links in document["networks"].items()
    ]
    return [f"The machines {standing.name}:", *rows, "Their networks:", *networks]


def _typed(words: str, name: str) -> str:
    """Return a verb of `coloctl lab machines` as it is typed for those machines."""
    verb, _, rest = words.partition(" ")
    option = "" if name == machine_layout.DEFAULT else f" --name {name}"
    return f"coloctl lab machines {verb}{option}{f' {rest}' if rest else ''}"

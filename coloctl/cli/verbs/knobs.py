"""Define the verbs `set`, `checkpoint` and `qmp`.

They call `control.acts`. The supervisor reads the values of settings (`model.tuning`); `set` sends
what was typed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from coloctl.cli import reach
from coloctl.cli.acting import VerbCall
from coloctl.cli.options import dry_run_option, format_option, pair_argument
from coloctl.cli.views import plain
from coloctl.control.acts import Acts
from coloctl.errors import UsageError
from coloctl.model.tuning import words
from coloctl.reading import read_json


@click.command("set")
@pair_argument
@click.argument("settings", metavar="NAME=VALUE...", nargs=-1, required=True)
@dry_run_option
@format_option("pretty", "json")
def set_values(pair: str, settings: tuple[str, ...], dry_run: bool, form: str) -> None:
    """Change settings of PAIR while it runs, all of them or none.

    \b
    checkpoint-delay    ms       the longest time between two checkpoints
    checkpoint-mode     fixed, adaptive: who chooses that time
    compare-timeout     ms       how long the primary's packet waits for the secondary's
    expired-scan-cycle  ms       how often waiting answers are looked through
    max-queue-size      packets  that may wait per connection
    mirror-rate         50MiB    per second, of disks being copied; 0: unlimited

    They hold until the pair is stopped, also after a failover; the pair file is left as it is.
    """
    given = _settings(settings)
    act = VerbCall(pair, "set", form, dry_run, asked={"settings": given})
    done = act.carry_out(lambda acts: acts.set(given))
    if done is None:
        return
    if form == "json":
        changed = [asdict(one) for one in done]
        plain.print_json({"schema": SET_SCHEMA, "name": pair, "changed": changed})
        return
    for one in done:
        now, before = words(one.name, one.after), words(one.name, one.before)
        print(f"{one.name} of {pair} is {now}, it was {before}.")


def _settings(texts: Iterable[str]) -> dict[str, str]:
    """Return what was typed for each setting; raises `UsageError` for no ``NAME=VALUE``."""
    given: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(
                f"'{text}' sets nothing.", hint="write checkpoint-delay=500 for half a second"
            )
        if name in given:
            raise UsageError(f"{name} is given twice.", hint="leave one of them out")
        given[name] = value
    return given


#: Of `set -f json`; 2: ``name`` is the pair's, and only ``changed`` names settings.
SET_SCHEMA = 2


@click.command()
@pair_argument
@dry_run_option
@format_option("pretty", "json")
def checkpoint(pair: str, dry_run: bool, form: str) -> None:
    """Take one checkpoint of PAIR now; returns when both nodes hold it."""
    done = VerbCall(pair, "checkpoint", form, dry_run).carry_out(Acts.checkpoint)
    if done is None:
        return
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, **done.to_json()})
    else:
        paused = "" if done.pause_ms is None else f"; the guest paused for {done.pause_ms:g} ms"
        print(f"Checkpoint {done.count} is complete{paused}.")


@click.command(options_metavar="[OPTIONS]")
@pair_argument
@click.argument("node", metavar="NODE", type=click.Choice(["a", "b"]))
@click.argument("command", metavar="CMD")
@click.argument("arguments", metavar="[K=V]...", nargs=-1)
@click.option("--oob", is_flag=True, help="Out of band, over the rescue monitor.")
@format_option("json", "pretty")
def qmp(
    *, pair: str, node: str, command: str, arguments: tuple[str, ...], oob: bool, form: str
) -> None:
    """Send one QMP command to the QEMU of one NODE, a or b, and print what it returns.

    A value is read as JSON where it is JSON, and as text otherwise:
    coloctl qmp web a -- qom-get path=/machine property=type

    What QEMU returns is printed as JSON in either format. Nothing is checked: a command that
    changes what coloctl set up can cost the pair's protection.
    """
    given = dict(_argument(text) for text in arguments)
    with reach.acts(pair) as acts:
        plain.print_json(acts.qmp(node, command, given, oob=oob))


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"'{text}' is not an argument of a QMP command.", hint="write name=value")
    try:
        return name, read_json(value)
    except ValueError:
        return name, value

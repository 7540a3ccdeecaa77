"""The verbs `set`, `checkpoint` and `qmp`."""

from __future__ import annotations

import json
from typing import Any

import click

from coloctl.cli import documents, reach
from coloctl.cli.options import dry_run_option, format_option, pair_argument
from coloctl.errors import UsageError

#: A checkpoint has 30 s of its own in the supervisor, a QMP command as much.
PATIENCE_S = 60.0

#: The settings that can be changed, and what their value is.
SETTINGS = {"checkpoint-delay": "milliseconds"}


@click.command("set")
@pair_argument
@click.argument("setting", metavar="NAME=VALUE")
@dry_run_option
@format_option("pretty", "json")
def set_value(pair: str, setting: str, dry_run: bool, form: str) -> None:
    """Change a setting of PAIR while it runs.

    checkpoint-delay=MS is the longest time between two checkpoints. It holds until the pair is
    stopped; the pair file is left as it is.
    """
    name, value = _setting(setting)
    with reach.connect(pair) as client:
        if dry_run:
            steps = client.execute("query-plan", reach.TIMEOUT_S, verb="set", value=value)
            documents.show_dialogue(pair, "set", steps, form)
            return
        done = client.execute("pair-set", PATIENCE_S, name=name, value=value)
    if form == "json":
        documents.print_json({"schema": documents.SCHEMA, "pair": pair, **done})
    else:
        print(f"{name} of {pair} is {done['after']} ms, it was {done['before']} ms.")


def _setting(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or name not in SETTINGS:
        raise UsageError(
            f"'{text}' is no setting that can be changed.",
            hint="write checkpoint-delay=500 for half a second",
        )
    try:
        return name, int(value.removesuffix("ms"))
    except ValueError:
        raise UsageError(
            f"'{value}' is not a number of {SETTINGS[name]}.", hint=f"write {name}=500"
        ) from None


@click.command()
@pair_argument
@dry_run_option
@format_option("pretty", "json")
def checkpoint(pair: str, dry_run: bool, form: str) -> None:
    """Take one checkpoint of PAIR now; returns when both nodes hold it."""
    with reach.connect(pair) as client:
        if dry_run:
            steps = client.execute("query-plan", reach.TIMEOUT_S, verb="checkpoint")
            documents.show_dialogue(pair, "checkpoint", steps, form)
            return
        done = client.execute("pair-checkpoint", PATIENCE_S)
    if form == "json":
        document = {"name": pair, "count": done["count"], "pause_ms": done["pause-ms"]}
        documents.print_json({"schema": documents.SCHEMA, **document})
    else:
        print(f"Checkpoint {done['count']} is complete; the guest paused for "
              f"{done['pause-ms']:g} ms.")  # fmt: skip


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
    answer = reach.ask(
        pair, "node-qmp", PATIENCE_S,
        node=node, execute=command, arguments=given or None, oob=oob or None,
    )  # fmt: skip
    documents.print_json(answer)


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"'{text}' is not an argument of a QMP command.", hint="write name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value

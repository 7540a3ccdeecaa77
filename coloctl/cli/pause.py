"""The verbs `pause` and `resume`: automatic failover off and on."""

from __future__ import annotations

import click

from coloctl.cli import documents, reach
from coloctl.cli.options import format_option, pair_argument


@click.command()
@pair_argument
@format_option("pretty", "json")
def pause(pair: str, form: str) -> None:
    """Let the supervisor of PAIR only watch: a failover waits for `coloctl failover`.

    The pair stays paused until `coloctl resume`, also when its supervisor is started anew. Every
    status shows it.
    """
    _switch(pair, "pair-pause", form)


@click.command()
@pair_argument
@format_option("pretty", "json")
def resume(pair: str, form: str) -> None:
    """Let the supervisor of PAIR fail over by itself again.

    What it has been waiting with, it does now.
    """
    _switch(pair, "pair-resume", form)


def _switch(pair: str, command: str, form: str) -> None:
    answer = reach.ask(pair, command)
    if form == "json":
        documents.print_json({"schema": documents.SCHEMA, "name": pair, **answer})
        return
    already = " already" if answer["before"] is answer["paused"] else ""
    if answer["paused"]:
        print(f"{pair} is{already} paused: it fails over only when it is told to.")
    else:
        print(f"{pair} is{already} not paused: it fails over by itself.")

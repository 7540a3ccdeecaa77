"""The verbs `pause` and `resume`: automatic failover off and on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from coloctl.cli import reach
from coloctl.cli.options import format_option, pair_argument
from coloctl.cli.views import plain


@click.command()
@pair_argument
@format_option("pretty", "json")
def pause(pair: str, form: str) -> None:
    """Let the supervisor of PAIR only watch: a failover waits for `coloctl failover`.

    The pair stays paused until `coloctl resume`, also when its supervisor is started anew. Every
    status shows it.
    """
    with reach.acts(pair) as acts:
        _tell(pair, acts.pause(), form)


@click.command()
@pair_argument
@format_option("pretty", "json")
def resume(pair: str, form: str) -> None:
    """Let the supervisor of PAIR fail over by itself again.

    What it has been waiting with, it does now.
    """
    with reach.acts(pair) as acts:
        _tell(pair, acts.resume(), form)


def _tell(pair: str, answer: Mapping[str, Any], form: str) -> None:
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, **answer})
        return
    already = " already" if answer["before"] is answer["paused"] else ""
    if answer["paused"]:
        print(f"{pair} is{already} paused: it fails over only when it is told to.")
    else:
        print(f"{pair} is{already} not paused: it fails over by itself.")

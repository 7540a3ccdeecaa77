"""Define the verbs `pause` and `resume`: automatic failover off and on.

Both ask the supervisor through `cli.reach`.
"""

from __future__ import annotations

import click

from coloctl.cli import reach
from coloctl.cli.options import format_option, pair_argument
from coloctl.cli.views import plain


@click.command()
@pair_argument
@format_option("pretty", "json")
def pause(pair: str, form: str) -> None:
    """Pause the automatic failover of PAIR: its supervisor only watches.

    A failover waits for `coloctl failover` then. The pair stays paused until `coloctl resume`, also
    when its supervisor is started again. Every status shows it.
    """
    with reach.acts(pair) as acts:
        _tell(pair, form, paused=True, before=acts.pause())


@click.command()
@pair_argument
@format_option("pretty", "json")
def resume(pair: str, form: str) -> None:
    """Resume the automatic failover of PAIR.

    A failover that was waiting is done now.
    """
    with reach.acts(pair) as acts:
        _tell(pair, form, paused=False, before=acts.resume())


def _tell(pair: str, form: str, *, paused: bool, before: bool) -> None:
    if form == "json":
        document = {"name": pair, "paused": paused, "before": before}
        plain.print_json({"schema": plain.SCHEMA, **document})
        return
    already = " already" if before is paused else ""
    if paused:
        print(f"{pair} is{already} paused: it fails over only by `coloctl failover {pair}`.")
    else:
        print(f"{pair} is{already} not paused: it fails over by itself.")

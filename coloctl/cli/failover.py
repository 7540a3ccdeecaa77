"""The verb `failover`."""

from __future__ import annotations

import click

from coloctl.cli import complaint, documents, reach
from coloctl.cli.options import (
    Duration,
    WaitingCommand,
    confirm,
    dry_run_option,
    format_option,
    pair_argument,
    yes_option,
)

#: Fencing, yank, promotion and verification each have their own deadline; together less than this.
PATIENCE_S = 120.0


@click.command(cls=WaitingCommand)
@pair_argument
@click.option(
    "--to",
    type=click.Choice(["a", "b"]),
    help="The node that shall run the guest; without it the only one that lives, or else the "
    "secondary.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Try again after a failover that failed; accept a secondary whose disk missed a write.",
)
@click.option(
    "--wait",
    type=Duration(),
    metavar="[=T]",
    default=PATIENCE_S,
    help=f"How long to wait for the survivor (default {PATIENCE_S:.0f} s); a failover that takes "
    "longer goes on.",
)
@dry_run_option
@yes_option
@format_option("pretty", "json")
def failover(
    *, pair: str, to: str | None, force: bool, wait: float, dry_run: bool, yes: bool, form: str
) -> None:
    """Let one node of PAIR run the guest alone; the other is killed first, and proven dead.

    Nothing that clients were told is done is lost, and their connections stay open. The pair is
    unprotected afterwards; `coloctl start` with its pair file protects it again.
    """
    with reach.connect(pair) as client:
        if dry_run:
            steps = client.execute("query-plan", reach.TIMEOUT_S, verb="failover", to=to)
            documents.show_dialogue(pair, "failover", steps, form)
            return
        confirm(pair, f"This kills one of the two QEMUs of {pair} for good.", yes=yes)
        with complaint.on_interrupt(f"Interrupted; the failover of {pair} goes on."):
            timeline = client.execute("pair-failover", wait, to=to, force=force or None)
    if form == "json":
        documents.print_json({"schema": documents.SCHEMA, "name": pair, **timeline})
        return
    from coloctl.cli import render

    render.console().print(render.timeline(pair, timeline))

"""Define the verb `failover`.

Asks the supervisor through `cli.acting`, which calls `control.acts`.
"""

from __future__ import annotations

import click

from coloctl.cli.acting import VerbCall, tell_timeline
from coloctl.cli.options import (
    WaitingCommand,
    dry_run_option,
    format_option,
    pair_argument,
    wait_option,
    yes_option,
)
from coloctl.control.acts import FAILOVER_WAIT_S


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
@wait_option(
    FAILOVER_WAIT_S,
    f"How long to wait for the survivor (default {FAILOVER_WAIT_S:.0f} s); a failover that takes "
    "longer goes on.",
)
@dry_run_option
@yes_option
@format_option("pretty", "json")
def failover(
    *, pair: str, to: str | None, force: bool, wait: float, dry_run: bool, yes: bool, form: str
) -> None:
    """Run the guest of PAIR on one node alone; the other is killed first, and proven dead.

    Nothing that was acknowledged to a client is lost, and connections stay open. The pair is
    unprotected until a new secondary follows: by itself where its policy lets it, else with
    `coloctl reprotect`.
    """
    timeline = VerbCall(
        pair, "failover", form, dry_run, asked={"to": to}, yes=yes,
        question=f"This kills one of the two QEMUs of {pair} for good.",
        interrupted=f"Interrupted; the failover of {pair} goes on.",
    ).carry_out(lambda acts: acts.failover(to, force=force, wait_s=wait))  # fmt: skip
    if timeline is not None:
        tell_timeline(pair, timeline, form)

"""Define the verb `switchover`.

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
from coloctl.control.acts import SWITCHOVER_WAIT_S


@click.command(cls=WaitingCommand)
@pair_argument
@click.option(
    "--force",
    is_flag=True,
    help="Switch over also under TCG without the fresh-code plugin, where the secondary may run "
    "stale code.",
)
@wait_option(
    SWITCHOVER_WAIT_S,
    f"How long to wait until the pair is protected again (default {SWITCHOVER_WAIT_S:.0f} s); what "
    "takes longer goes on.",
)
@dry_run_option
@yes_option
@format_option("pretty", "json")
def switchover(*, pair: str, force: bool, wait: float, dry_run: bool, yes: bool, form: str) -> None:
    """Exchange the roles of the two nodes of PAIR, for instance to work on a host.

    Nothing is lost, connections stay open, and the pair is protected again when this returns. Up to
    the fence of the old primary, the point of no return, any failure leaves the pair as it was.
    """
    timeline = VerbCall(
        pair, "switchover", form, dry_run, yes=yes, drawn=True,
        question=f"This ends the primary of {pair}; its secondary takes over.",
        interrupted=f"Interrupted; the switchover of {pair} goes on.",
    ).carry_out(lambda acts: acts.switchover(force=force, wait_s=wait))  # fmt: skip
    if timeline is None:
        return
    tell_timeline(pair, timeline, form)
    if form != "json":
        print(f"{pair} is protected: node {timeline.lost} follows.")

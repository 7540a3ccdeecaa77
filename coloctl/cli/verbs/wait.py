"""Define the verbs `wait` and `query`: one blocks until a pair is in a state, the other only asks.

Both ask through `cli.reach`; `control.acts` waits.
"""

from __future__ import annotations

import time

import click

from coloctl.cli import reach
from coloctl.cli.options import Duration, format_option, pair_argument
from coloctl.cli.views import plain
from coloctl.control.acts import QUERY_WAIT_S
from coloctl.model.protection import Protection

STATES = click.Choice([str(state) for state in Protection])


@click.command()
@pair_argument
@click.option("--for", "state", type=STATES, required=True, help="The state to wait for.")
@click.option("--timeout", type=Duration(), default=120.0, help="How long at most (default 120 s).")
@format_option("pretty", "json")
def wait(pair: str, state: str, timeout: float, form: str) -> None:
    """Wait until PAIR is in a state; the exit code is 6 when it is not in time.

    For colo it waits also until nothing puts the protection in doubt: a node that seems to be lost,
    or of which too little is known. A pair that is stopped and gone meanwhile counts as down.
    """
    give_up = time.monotonic() + timeout
    # However little time is left, it is asked once.
    with reach.acts(pair, min(QUERY_WAIT_S, max(timeout, 0.1))) as acts:
        found = acts.wait_for(state, max(give_up - time.monotonic(), 0.1))
    if form == "json":
        document = {"name": pair, "asked": state, "protection": found}
        plain.print_json({"schema": plain.SCHEMA, **document})


@click.group()
@pair_argument
@click.pass_context
def query(ctx: click.Context, pair: str) -> None:
    """Ask one question about PAIR; the exit code is 0 for yes and 3 for no."""
    ctx.obj = pair


@query.command("is-state")
@click.argument("state", metavar="STATE", type=STATES)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing; the exit code is the answer.")
@format_option("pretty", "json")
@click.pass_obj
def is_state(pair: str, state: str, quiet: bool, form: str) -> int:
    """Answer whether the pair is in STATE.

    STATE is down, unprotected, resync, migrating, colo, failover or failed.
    """
    with reach.acts(pair) as acts:
        found = acts.view().protection
    yes = found == state
    if quiet:
        pass
    elif form == "json":
        document = {"name": pair, "asked": state, "protection": found, "answer": yes}
        plain.print_json({"schema": plain.SCHEMA, **document})
    else:
        print(f"{pair} is {found}." if yes else f"{pair} is {found}, not {state}.")
    return 0 if yes else 3

"""The verbs `wait` and `query`: one blocks until a pair is in a state, the other only asks."""

from __future__ import annotations

import time

import click

from coloctl import paths
from coloctl.cli import documents, reach
from coloctl.cli.options import Duration, format_option, pair_argument
from coloctl.control.client import ControlClient
from coloctl.errors import DeadlineMissed, Unreachable
from coloctl.model.protection import Protection

STATES = click.Choice([str(state) for state in Protection])


@click.command()
@pair_argument
@click.option("--for", "state", type=STATES, required=True, help="The state to wait for.")
@click.option("--timeout", type=Duration(), default=120.0, help="How long at most (default 120 s).")
@format_option("pretty", "json")
def wait(pair: str, state: str, timeout: float, form: str) -> None:
    """Wait until PAIR is in a state; the exit code is 6 when it is not in time.

    A pair that is stopped and gone meanwhile counts as down.
    """
    deadline_s = time.monotonic() + timeout
    with reach.connect(pair) as client:
        try:
            found = _until(client, state, deadline_s)
        except Unreachable:
            if state != Protection.DOWN or paths.pair_dir(pair).exists():
                raise
            found = state
    if found != state:
        raise DeadlineMissed(
            f"{pair} is {found} and not {state} after {timeout:g} s.",
            hint=f"`coloctl status {pair}` says why",
        )
    if form == "json":
        document = {"name": pair, "asked": state, "protection": found}
        documents.print_json({"schema": documents.SCHEMA, **document})


def _until(client: ControlClient, state: str, deadline_s: float) -> str:
    """``state`` as soon as the pair is in it, else the state it is in at the deadline."""
    found = str(client.execute("query-pair", reach.TIMEOUT_S)["protection"])
    if found == state:
        return found
    for event in client.events(max(0.0, deadline_s - time.monotonic())):
        if event.name == "STATE_CHANGED":
            found = event.data["after"]
            if found == state:
                break
    return found


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
    """Whether the pair is in STATE.

    STATE is down, unprotected, resync, migrating, colo, failover or failed.
    """
    found = reach.ask(pair, "query-pair")["protection"]
    yes = found == state
    if quiet:
        pass
    elif form == "json":
        document = {"name": pair, "asked": state, "protection": found, "answer": yes}
        documents.print_json({"schema": documents.SCHEMA, **document})
    else:
        print(f"{pair} is {found}." if yes else f"{pair} is {found}, not {state}.")
    return 0 if yes else 3

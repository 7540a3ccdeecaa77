"""Define the verb `history`: list every failover of a pair, also when its supervisor is gone.

`cli.verbs.fence` reads `past_of` too. Without a supervisor the file is read by
`supervisor.history`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from coloctl import paths
from coloctl.cli import reach
from coloctl.cli.options import format_option, pair_argument
from coloctl.cli.views import plain
from coloctl.errors import NoSuchPair, Unreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

Past = Mapping[str, Any]


@click.command()
@pair_argument
@click.option("-e", "--extended", is_flag=True, help="Show the steps of each failover.")
@format_option("pretty", "json")
def history(pair: str, extended: bool, form: str) -> None:
    """List every failover of PAIR since it was started: generation, cause, survivor, times.

    Times count from the moment at which the loss was noticed: FAULT is when it happened, where that
    is known, RUNNING when the survivor's guest ran. A failover that failed is listed too, with why.
    """
    failovers, unreadable = past_of(pair)
    if form == "json":
        plain.print_json(
            {
                "schema": plain.SCHEMA,
                "name": pair,
                "failovers": failovers,
                "unreadable": unreadable,
            }
        )
        return
    if not failovers:
        print(f"{pair} has not failed over since it was started.")
    else:
        from coloctl.cli.views import render

        render.console().print(_drawn(failovers, extended=extended))
    if unreadable:
        print(f"{unreadable} damaged lines were passed over.")


def past_of(pair: str) -> tuple[Sequence[Past], int]:
    """Return every failover, oldest first, and how many lines of the file are damaged.

    Asks the supervisor, and reads the pair's folder where that is gone. Raises `NoSuchPair`.
    """
    try:
        with reach.acts(pair) as acts:
            answer = acts.history()
        return answer["failovers"], answer["unreadable"]
    except (NoSuchPair, Unreachable):
        folder = paths.pair_dir(pair)
        if not folder.is_dir():
            raise
    from coloctl.supervisor import history as store

    past = store.read(folder / store.FILE)
    return past.failovers, past.unreadable


def _drawn(failovers: Sequence[Past], *, extended: bool) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from coloctl.cli.views import render

    table = render.plain_table("GEN", "WHEN", "CAUSE", "NODES")
    for name in ("FAULT", "RUNNING"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in failovers:
        table.add_row(*map(str, _row(one)))
    parts: list[RenderableType] = [table]
    for one in failovers:
        if "failed" in one:
            parts.append(Text(f"generation {one['generation']}, {when(one)}: {one['failed']}"))
    for one in failovers if extended else ():
        if one.get("steps"):
            title = f"generation {one['generation']}, {when(one)}"
            parts += [Text(), Text(title, style="bold"), render.timeline_steps(one)]
    return Group(*parts)


def _row(one: Past) -> tuple[object, ...]:
    """Return the cells of one failover; times count from the detection of the loss."""
    from coloctl.cli.views.render import milliseconds
    from coloctl.model.timeline import FailoverStep

    running = milliseconds(one.get("steps", {}).get(FailoverStep.RUNNING))
    return (
        one.get("generation", "-"),
        when(one),
        one.get("cause") or "-",
        f"{one.get('lost', '?')} -> {one.get('survivor', '?')}",
        milliseconds(one.get("fault_ms")),
        "failed" if "failed" in one else running,
    )


def when(one: Past) -> str:
    """Return the moment of a failover by the wall clock."""
    try:
        moment = datetime.fromisoformat(str(one.get("at"))).astimezone()
    except ValueError:
        return "-"
    return f"{moment:%Y-%m-%d %H:%M:%S}"

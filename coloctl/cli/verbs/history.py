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
from coloctl.model.answers import PastFailovers
from coloctl.model.timeline import FailoverStep, Timeline

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command()
@pair_argument
@click.option("-e", "--extended", is_flag=True, help="Show the steps of each failover.")
@format_option("pretty", "json")
def history(pair: str, extended: bool, form: str) -> None:
    """List every failover of PAIR since it was started: generation, cause, survivor, times.

    Times count from the moment at which the loss was noticed: FAULT is when it happened, where that
    is known, RUNNING when the survivor's guest ran. A failover that failed is listed too, with why.
    """
    document = past_of(pair)
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, **document})
        return
    past = PastFailovers.from_json(document)
    if not past.failovers:
        print(f"{pair} has not failed over since it was started.")
    else:
        from coloctl.cli.views import render

        render.console().print(_drawn(past.failovers, extended=extended))
    if past.unreadable:
        print(f"{past.unreadable} damaged lines were passed over.")


def past_of(pair: str) -> Mapping[str, Any]:
    """Return the document of every failover, oldest first, and how many lines are damaged.

    Asks the supervisor, and reads the pair's folder where that is gone. Raises `NoSuchPair`.
    """
    try:
        with reach.acts(pair) as acts:
            return acts.history_document()
    except (NoSuchPair, Unreachable):
        folder = paths.pair_dir(pair)
        if not folder.is_dir():
            raise
    from coloctl.supervisor import history as store

    return store.read(folder / store.FILE).to_json()


def _drawn(failovers: Sequence[Timeline], *, extended: bool) -> RenderableType:
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
        if one.failed:
            parts.append(Text(f"generation {one.generation}, {when(one.at)}: {one.failed}"))
    for one in failovers if extended else ():
        if one.steps:
            title = f"generation {one.generation}, {when(one.at)}"
            parts += [Text(), Text(title, style="bold"), render.timeline_steps(one)]
    return Group(*parts)


def _row(one: Timeline) -> tuple[object, ...]:
    """Return the cells of one failover; times count from the detection of the loss."""
    from coloctl.cli.views.render import milliseconds

    return (
        one.generation,
        when(one.at),
        one.cause or "-",
        f"{one.lost} -> {one.survivor}",
        milliseconds(one.fault_ms),
        "failed" if one.failed else milliseconds(one.steps.get(FailoverStep.RUNNING)),
    )


def when(at: str) -> str:
    """Return the moment of a failover by the wall clock."""
    try:
        moment = datetime.fromisoformat(at).astimezone()
    except ValueError:
        return "-"
    return f"{moment:%Y-%m-%d %H:%M:%S}"

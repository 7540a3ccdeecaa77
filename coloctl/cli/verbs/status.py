"""Define the verbs `status` and `list`.

They ask through `cli.reach` and draw through `cli.views.pair`, which is imported for tables alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import click

from coloctl.cli import reach, streams
from coloctl.cli.options import PairName, format_option
from coloctl.cli.reach import Looked
from coloctl.cli.views import plain
from coloctl.errors import UsageError

#: People do not read faster, and a supervisor observes its QEMUs once a second.
WATCH_MIN_S = 0.1


@click.command()
@click.argument("pair", type=PairName(), required=False)
@click.option("-e", "--extended", is_flag=True, help="Show all that is known of each node.")
@click.option("-w", "--watch", type=float, metavar="SEC", help="Show it again every SEC seconds.")
@format_option("pretty", "json", "tsv")
def status(pair: str | None, extended: bool, watch: float | None, form: str) -> int:
    """Show nodes, roles, protection and checkpoints of PAIR, or of every pair here.

    The exit code is 3 when a pair that is shown is not protected; under -w, which Ctrl-C ends, it
    is 0.
    """
    if watch is None:
        looked = _look(pair)
        _show(looked, pair, form, extended=extended)
        return 0 if all(one.view and one.view.protected for one in looked) else 3
    if watch < WATCH_MIN_S:
        raise UsageError(f"-w {watch:g} is too often.", hint=f"use {WATCH_MIN_S} or more")
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
        _watch(pair, watch, form, extended=extended)
    return 0


@click.command("list")
@format_option("pretty", "json", "tsv")
def list_pairs(form: str) -> None:
    """List the pairs of this machine, also those whose supervisor is gone."""
    gone = reach.given_up()
    rows = [plain.summary(one, given_up=one.name in gone) for one in reach.survey()]
    unlisted = _of_others(gone, {row["name"] for row in rows})
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "pairs": rows, "given_up": unlisted})
    elif form == "tsv":
        columns = plain.LIST_COLUMNS
        print(plain.tsv([columns, *([row[name] for name in columns] for row in rows)]))
    elif rows:
        from coloctl.cli.views import pair as pair_views
        from coloctl.cli.views import render

        render.console().print(pair_views.pairs(rows))
    else:
        print("No pair runs here.")
    if form == "pretty":
        _print_given_up(unlisted)


def _look(pair: str | None) -> list[Looked]:
    return reach.survey() if pair is None else [reach.ask(pair)]


def _show(looked: list[Looked], pair: str | None, form: str, *, extended: bool) -> None:
    if form == "json":
        plain.print_json(_document(looked, pair))
    elif form == "tsv":
        print(plain.tsv([plain.TSV_COLUMNS, *_tsv(looked)]))
    elif looked:
        from coloctl.cli.views import pair as pair_views
        from coloctl.cli.views import render

        render.console().print(pair_views.statuses(looked, extended=extended))
    else:
        print("No pair runs here.")
    if form == "pretty":
        _print_given_up(_given_up(looked, pair))


def _given_up(looked: list[Looked], pair: str | None) -> dict[str, str]:
    """Return what was given up of pairs without a view here, where all pairs are shown."""
    if pair is not None:
        return {}
    return _of_others(reach.given_up(), {one.name for one in looked if one.view})


def _of_others(given_up: Mapping[str, str], shown: Collection[str]) -> dict[str, str]:
    """Return what was given up of pairs that are not ``shown``, which would name it themselves."""
    return {name: said for name, said in given_up.items() if name not in shown}


def _print_given_up(sentences: Mapping[str, str]) -> None:
    for name, said in sentences.items():
        print(f"{name}: {said}")


def _document(looked: list[Looked], pair: str | None) -> Any:
    """Return the document of the one pair that was asked for, or a list of all."""
    if pair is not None:
        return looked[0].document
    pairs = [one.to_json() for one in looked]
    return {"schema": plain.SCHEMA, "pairs": pairs, "given_up": _given_up(looked, pair)}


def _tsv(looked: list[Looked]) -> list[list[object]]:
    return [row for one in looked if one.view for row in plain.tsv_rows(one.view)]


def _watch(pair: str | None, every_s: float, form: str, *, extended: bool) -> None:
    """Show it again until Ctrl-C: a table that renews itself, JSON lines, or more rows."""
    if form == "pretty" and sys.stdout.isatty():
        _watch_live(pair, every_s, extended=extended)
        return
    if form == "tsv":
        print(plain.tsv([plain.TSV_COLUMNS]))
    while True:
        looked = _look(pair)
        if form == "json":
            print(json.dumps(_document(looked, pair), ensure_ascii=False))
        elif form == "tsv":
            print(plain.tsv(_tsv(looked)))
        else:
            _show(looked, pair, form, extended=extended)
        streams.require()
        time.sleep(every_s)


def _watch_live(pair: str | None, every_s: float, *, extended: bool) -> None:
    from rich.live import Live

    from coloctl.cli.views import pair as pair_views
    from coloctl.cli.views import render

    console = render.console()
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            drawn = pair_views.statuses(_look(pair), extended=extended)
            live.update(pair_views.watched(drawn, every_s), refresh=True)
            streams.require()
            time.sleep(every_s)

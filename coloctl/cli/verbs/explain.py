"""Define the verb `explain`: why the state is what it is, and what would happen next.

Asks through `cli.reach` and draws a value of `model.explanation`; `supervisor.evidence` makes it
with the supervisor's own rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from coloctl.cli import reach
from coloctl.cli.options import format_option, pair_argument
from coloctl.cli.views import plain
from coloctl.cli.views.plain import clock, sentence
from coloctl.model.explanation import Explanation, PathShown, TriggerShown
from coloctl.model.protection import Protection
from coloctl.model.strangers import summary

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Of `explain -f json`; 2: the keys ``paths`` and, in a trigger, ``path`` are called so.
SCHEMA = 2

#: What the silence of each monitoring path means.
MEANINGS: Mapping[str, str] = {
    "rescue": "its monitor thread has not answered",
    "command": "its main loop has not answered",
    "agent": "its machine's agent has reported nothing",
    "link": "nothing crossed the replication link",
    "data": "disk writes or memory had no answer",
    "held": "the guest is stopped for a checkpoint",
    "overdue": "a checkpoint has been due",
}


@click.command()
@pair_argument
@format_option("pretty", "json")
def explain(pair: str, form: str) -> None:
    """Explain why PAIR is in its state, what is seen of it, and what would make it fail over.

    Each monitoring path is shown with how long it has been silent and how long it may be. Below
    is each thing that may happen now, what it would be called, what would be done, and which node
    would run the guest. The supervisor's own rules give these answers.
    """
    with reach.naming_given_up(pair), reach.acts(pair) as acts:
        if form == "json":
            plain.print_json({"schema": SCHEMA, **acts.explanation_document()})
            return
        shown = acts.explanation()
    from coloctl.cli.views import render

    render.console().print(drawn(shown))


def drawn(shown: Explanation) -> RenderableType:
    """Draw the explanation for people."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(line) for line in sentences(shown)]
    if shown.paths:
        parts += [Text(), _paths(shown.paths)]
    if shown.triggers:
        parts += [Text(), _triggers(shown.triggers)]
    return Group(*parts)


def sentences(shown: Explanation) -> Iterator[str]:
    """State, diagnosis, decision, and whether anything would be done."""
    yield (
        f"{shown.name} is {shown.protection} for {clock(shown.since_s)}, generation "
        f"{shown.generation}, because: {sentence(shown.reason)}"
    )
    if shown.exposed_s is not None:
        yield f"The guest has been unprotected for {clock(shown.exposed_s)}."
    if found := shown.diagnosis:
        yield f"Seen: {found.name}. {' '.join(found.evidence)}".rstrip()
    else:
        yield "Nothing was observed yet."
    if (decision := shown.decision) and decision.reason:
        yield f"Now: {decision.action}. {sentence(decision.reason)}"
    yield from shown.left
    if shown.given_up:
        yield shown.given_up
    if shown.stale_code:
        yield shown.stale_code
    if strangers := summary(shown.turned_away):
        yield strangers
    if shown.pace:
        yield f"Checkpoints come after {shown.delay_ms} ms: {shown.pace}"
    if changed := plain.changed_settings(shown.settings):
        yield f"Set while it runs: {', '.join(changed)}."
    yield _who_acts(shown)
    for said in shown.agents.values():
        yield sentence(said)


def _who_acts(shown: Explanation) -> str:
    name = shown.name
    if shown.acting:
        return f"The act '{shown.acting}' is under way."
    if shown.protection is Protection.DOWN:
        return f"No QEMU of {name} runs: `coloctl start` starts it."
    if shown.protection is Protection.FAILED:
        return f"It is not protected; `coloctl stop {name} --force` ends what is left of it."
    if shown.paused:
        return f"The pair is paused: only `coloctl failover {name}` fails it over."
    if not shown.auto_failover:
        return f"policy.auto_failover is false: only `coloctl failover {name}` fails it over."
    return f"It fails over by itself; a lost node is fenced by '{shown.fencing}'."


def _paths(paths: Iterable[PathShown]) -> RenderableType:
    from rich.text import Text

    from coloctl.cli.views import render

    table = render.plain_table("PATH", "NODE")
    for name in ("SILENT", "LIMIT"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for path in paths:
        now, limit = path.now_ms, path.limit_ms
        late = now >= limit
        table.add_row(
            path.name,
            path.node or "-",
            Text(f"{now:.0f} ms", style="red" if late else ""),
            f"{limit:.0f} ms",
            Text(render.bar(0, min(now, limit), limit, 12), style="red" if late else "green"),
            MEANINGS.get(path.name, ""),
        )
    return table


def _triggers(triggers: Iterable[TriggerShown]) -> RenderableType:
    from coloctl.cli.views import render

    table = render.plain_table()
    table.add_column("IF")
    table.add_column("FOR", justify="right", no_wrap=True)
    table.add_column("THEN IT IS", no_wrap=True)
    table.add_column("AND IT WILL", no_wrap=True)
    table.add_column("RUNS ON", no_wrap=True)
    for one in triggers:
        table.add_row(
            one.happens,
            "-" if one.limit_ms is None else f"{one.limit_ms:.0f} ms",
            one.diagnosis,
            one.action,
            f"node {one.winner}" if one.winner else "-",
        )
    return table

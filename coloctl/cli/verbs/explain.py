"""Define the verb `explain`: why the state is what it is, and what would happen next.

Asks through `cli.reach`; `supervisor/` makes the document with its own rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from coloctl.cli import reach
from coloctl.cli.options import format_option, pair_argument
from coloctl.cli.views import plain
from coloctl.cli.views.plain import clock, sentence
from coloctl.model.revive import revive
from coloctl.model.strangers import TurnedAway, summary
from coloctl.model.view import SettingView

if TYPE_CHECKING:
    from rich.console import RenderableType

Document = Mapping[str, Any]

#: Of `explain -f json`; 2: the keys ``paths`` and, in a trigger, ``path`` are called so.
SCHEMA = 2

#: What the silence of each monitoring path means.
MEANINGS: Mapping[str, str] = {
    "rescue": "its monitor thread has not answered",
    "command": "its main loop has not answered",
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
    with reach.acts(pair) as acts:
        document = acts.explanation()
    if form == "json":
        plain.print_json({"schema": SCHEMA, **document})
        return
    from coloctl.cli.views import render

    render.console().print(drawn(document))


def drawn(document: Document) -> RenderableType:
    """Draw the explanation for people."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(line) for line in sentences(document)]
    if document["paths"]:
        parts += [Text(), _paths(document)]
    if document["triggers"]:
        parts += [Text(), _triggers(document)]
    return Group(*parts)


def sentences(document: Document) -> Iterator[str]:
    """State, diagnosis, decision, and whether anything would be done."""
    name = document["name"]
    yield (
        f"{name} is {document['protection']} for {clock(document['since_s'])}, generation "
        f"{document['generation']}, because: {sentence(document['reason'])}"
    )
    if document["exposed_s"] is not None:
        yield f"The guest has been unprotected for {clock(document['exposed_s'])}."
    if found := document["diagnosis"]:
        yield f"Seen: {found['name']}. {' '.join(found['evidence'])}".rstrip()
    else:
        yield "Nothing was observed yet."
    if (decision := document["decision"]) and decision["reason"]:
        yield f"Now: {decision['action']}. {sentence(decision['reason'])}"
    if stale := document.get("stale_code"):
        yield stale
    if strangers := summary(_turned_away(document)):
        yield strangers
    if pace := document.get("pace"):
        yield f"Checkpoints come after {document['delay_ms']} ms: {pace}"
    if changed := plain.changed_settings(_settings(document)):
        yield f"Set while it runs: {', '.join(changed)}."
    yield _who_acts(document)
    for said in document.get("agents", {}).values():
        yield sentence(said)


def _turned_away(document: Document) -> TurnedAway | None:
    found = document.get("turned_away")
    return None if found is None else revive(TurnedAway, found)


def _settings(document: Document) -> dict[str, SettingView]:
    found = document.get("settings", {})
    return {name: revive(SettingView, one) for name, one in found.items()}


def _who_acts(document: Document) -> str:
    name = document["name"]
    if document["acting"]:
        return f"The act '{document['acting']}' is under way."
    if document["protection"] == "down":
        return f"No QEMU of {name} runs: `coloctl start` starts it."
    if document["protection"] == "failed":
        return f"It is not protected; `coloctl stop {name} --force` ends what is left of it."
    if document["paused"]:
        return f"The pair is paused: only `coloctl failover {name}` fails it over."
    if not document["auto_failover"]:
        return f"policy.auto_failover is false: only `coloctl failover {name}` fails it over."
    return f"It fails over by itself; a lost node is fenced by '{document['fencing']}'."


def _paths(document: Document) -> RenderableType:
    from rich.text import Text

    from coloctl.cli.views import render

    table = render.plain_table("PATH", "NODE")
    for name in ("SILENT", "LIMIT"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for path in document["paths"]:
        now, limit = path["now_ms"], path["limit_ms"]
        late = now >= limit
        table.add_row(
            path["name"],
            path["node"] or "-",
            Text(f"{now:.0f} ms", style="red" if late else ""),
            f"{limit:.0f} ms",
            Text(render.bar(0, min(now, limit), limit, 12), style="red" if late else "green"),
            MEANINGS.get(path["name"], ""),
        )
    return table


def _triggers(document: Document) -> RenderableType:
    from coloctl.cli.views import render

    table = render.plain_table()
    table.add_column("IF")
    table.add_column("FOR", justify="right", no_wrap=True)
    table.add_column("THEN IT IS", no_wrap=True)
    table.add_column("AND IT WILL", no_wrap=True)
    table.add_column("RUNS ON", no_wrap=True)
    for one in document["triggers"]:
        limit = one["limit_ms"]
        table.add_row(
            one["happens"],
            "-" if limit is None else f"{limit:.0f} ms",
            one["diagnosis"],
            one["action"],
            f"node {one['winner']}" if one["winner"] else "-",
        )
    return table

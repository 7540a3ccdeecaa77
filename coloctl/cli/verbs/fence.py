"""Define the verb `fence`: confirm that a node is off, list what was fenced, forget what was lost.

`confirm` asks the supervisor through `cli.acting`; `forget` changes the list of
`supervisor.given_up`, whether a supervisor runs or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from coloctl.cli import options
from coloctl.cli.acting import VerbCall
from coloctl.cli.options import format_option, pair_argument, yes_option
from coloctl.cli.verbs import history
from coloctl.cli.views import plain
from coloctl.model.answers import PastFailovers
from coloctl.model.timeline import Timeline


@click.group()
def fence() -> None:
    """Confirm that a lost node is off, list what was fenced, or forget a machine that is gone."""


@fence.command()
@pair_argument
@click.argument("node", metavar="NODE", type=click.Choice(["a", "b"]))
@yes_option
@format_option("pretty", "json")
def confirm(pair: str, node: str, yes: bool, form: str) -> None:
    """Confirm that NODE of PAIR is off, so that a failover that waits for it goes on.

    Look first: power, cables, console. If the node still runs, two of the guest run from here on,
    and both write.
    """
    view = VerbCall(
        pair, "fence", form, yes=yes,
        question=f"You confirm that node {node} of {pair} is off and stays off.",
    ).carry_out(lambda acts: acts.confirm_fence(node))  # fmt: skip
    assert view is not None
    if form == "json":
        plain.print_json(view)
    else:
        print(
            f"Node {node} of {pair} counts as fenced; `coloctl status {pair}` shows what follows."
        )


@fence.command()
@pair_argument
@click.argument("node", metavar="NODE", type=click.Choice(["a", "b"]))
@yes_option
@format_option("pretty", "json")
def forget(pair: str, node: str, yes: bool, form: str) -> None:
    """State that what `stop --without` gave up on NODE of PAIR is gone for good.

    For a machine that was rebuilt or scrapped, so that no start of the pair can prove the end of
    its QEMU there. `status` and `list` name it no longer. It is refused where the machine itself
    answers: a start of the pair on it ends the QEMU then.
    """
    from coloctl.supervisor import given_up

    said = " ".join(one.sentence() for one in given_up.on(pair, node))
    options.confirm(pair, f"{said} You state that it is gone, and its machine too.", yes=yes)
    asyncio.run(given_up.forget(pair, node))
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, "node": node, "forgotten": said})
    else:
        print(f"What was given up on node {node} of {pair} is forgotten.")


@fence.command("history")
@pair_argument
@format_option("pretty", "json")
def fence_history(pair: str, form: str) -> None:
    """List what was fenced in the failovers of PAIR: how, and what proved it."""
    fences = _fences(PastFailovers.from_json(history.past_of(pair)).failovers)
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, "fences": fences})
    elif not fences:
        print(f"Nothing of {pair} was fenced since it was started.")
    else:
        from coloctl.cli.views import render

        table = render.plain_table("WHEN", "GENERATION", "NODE", "METHOD", "TOOK")
        table.add_column("RESULT", overflow="fold")
        for one in fences:
            table.add_row(
                history.when(one["at"]), str(one["generation"]), f"node {one['node']}",
                one["method"], render.milliseconds(one["ms"]), one["result"],
            )  # fmt: skip
        render.console().print(table)


def _fences(failovers: Sequence[Timeline]) -> list[dict[str, Any]]:
    return [
        {
            "at": one.at,
            "generation": one.generation,
            "node": how.node,
            "method": how.method,
            "ms": how.ms,
            "result": " ".join(filter(None, (how.failed or how.how or "-", how.said))),
            "fenced": not how.failed,
        }
        for one in failovers
        if (how := one.fence)
    ]

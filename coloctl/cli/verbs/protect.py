"""Define `protect`, `reprotect` and `unprotect`: protection of a running guest, on and off.

They ask the supervisor through `cli.acting`, which calls `control.acts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from coloctl.cli.acting import VerbCall
from coloctl.cli.options import (
    WaitingCommand,
    dry_run_option,
    format_option,
    pair_argument,
    wait_option,
    yes_option,
)
from coloctl.cli.views import plain
from coloctl.control.acts import PROTECT_WAIT_S, Acts, Document, read_view
from coloctl.errors import StillAtWork
from coloctl.model.view import PairView


@click.command(cls=WaitingCommand)
@pair_argument
@wait_option(
    PROTECT_WAIT_S,
    f"Wait until the pair is in COLO, at most T (default {PROTECT_WAIT_S:.0f} s); after T it goes "
    "on without you.",
)
@dry_run_option
@format_option("pretty", "json")
def protect(*, pair: str, wait: float, dry_run: bool, form: str) -> None:
    """Protect the guest of PAIR that runs alone: a fresh secondary is made on the other node.

    The guest goes on meanwhile. From then on the pair protects itself again after every failover,
    where its policy lets it. `reprotect` and `protect` are the same.
    """
    began = time.monotonic()
    goes_on = f"Interrupted; the supervisor of {pair} goes on with it."

    def do(acts: Acts) -> Document:
        try:
            return acts.protect(wait)
        except StillAtWork:
            raise StillAtWork(
                f"{pair} is not protected after {wait:g} s; it goes on.",
                hint=f"`coloctl wait {pair} --for colo` waits longer, "
                f"`coloctl unprotect {pair}` gives it up",
            ) from None

    view = VerbCall(pair, "protect", form, dry_run, interrupted=goes_on, drawn=True).carry_out(do)
    _show(view, form, lambda seen: plain.after_start(seen, time.monotonic() - began))


@click.command()
@pair_argument
@dry_run_option
@yes_option
@format_option("pretty", "json")
def unprotect(*, pair: str, dry_run: bool, yes: bool, form: str) -> None:
    """Run the guest of PAIR alone, where it runs now; its secondary is ended.

    The guest notices nothing, and the pair stays unprotected until `coloctl protect`. The
    secondary's disks are left behind: they are brought in sync again then.
    """
    view = VerbCall(
        pair, "unprotect", form, dry_run, yes=yes,
        question=f"From then on the loss of one node loses the guest of {pair}.",
        interrupted=f"Interrupted; {pair} loses its protection all the same.",
    ).carry_out(Acts.unprotect)  # fmt: skip
    _show(
        view,
        form,
        lambda seen: f"{pair} runs on node {plain.primary_of(seen)}, without protection.",
    )


def _show(view: Document | None, form: str, sentence: Callable[[PairView], str]) -> None:
    """Print the pair after an act, as JSON or in one sentence; nothing after a dry run."""
    if view is None:
        return
    if form == "json":
        plain.print_json(view)
    else:
        print(sentence(read_view(view)))

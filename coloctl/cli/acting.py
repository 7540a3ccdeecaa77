"""Carry out a verb that acts on a pair: plan or ask first, call the supervisor, draw its progress.

Called by `cli.verbs.failover`, `cli.verbs.protect`, `cli.verbs.stop` and the other verbs that
change a pair; calls `control.acts` over a connection of `cli.reach`, asks for confirmation through
`cli.options.confirm` and draws through `cli.views.progress.drawing`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coloctl.cli import complaint, reach
from coloctl.cli.options import confirm
from coloctl.cli.views import plain
from coloctl.cli.views.progress import drawing
from coloctl.control.acts import Acts
from coloctl.model.timeline import Timeline

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class VerbCall:
    """A verb about a pair, as it was typed."""

    pair: str
    verb: str
    form: str
    dry_run: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)  #: what its dialogue depends on
    question: str = ""  #: for the operator to confirm first; empty: none
    yes: bool = False  #: the operator has confirmed already
    interrupted: str = ""  #: what becomes of it at Ctrl-C; empty: it ends unnoticed
    drawn: bool = False  #: its steps are shown while it is under way

    def carry_out(self, do: Callable[[Acts], Answer]) -> Answer | None:
        """Carry the verb out and return the answer; None where the dialogue was only printed.

        Raises `NotConfirmed` when the operator does not confirm, and what ``do`` raises.
        """
        with reach.acts(self.pair) as acts:
            return self.over(acts, do)

    def over(self, acts: Acts, do: Callable[[Acts], Answer]) -> Answer | None:
        """Carry the verb out over a connection that stands; as `carry_out`."""
        if self.dry_run:
            steps = acts.plan(self.verb, **self.asked)
            plain.show_dialogue(self.pair, self.verb, steps, self.form)
            return None
        if self.question:
            confirm(self.pair, self.question, yes=self.yes)
        with self._watched(acts):
            return do(acts)

    @contextlib.contextmanager
    def _watched(self, acts: Acts) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.interrupted:
                stack.enter_context(complaint.on_interrupt(self.interrupted))
            if self.drawn:
                acts.client.on_event = stack.enter_context(drawing(as_json=self.form == "json"))
            yield


def tell_timeline(pair: str, timeline: Timeline, form: str) -> None:
    """Print the steps of a failover with their times on standard output."""
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, **timeline.to_json()})
        return
    from coloctl.cli.views import render

    render.console().print(render.timeline(pair, timeline))

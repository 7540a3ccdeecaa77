"""The shape of every verb that acts: reached, shown or asked about, carried out, and drawn."""

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

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class VerbCall:
    """A verb about a pair, as it was typed."""

    pair: str
    verb: str
    form: str
    dry_run: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)  #: what its dialogue depends on
    question: str = ""  #: what a person is asked first; empty: nothing
    yes: bool = False  #: the person has answered already
    interrupted: str = ""  #: what becomes of it at Ctrl-C; empty: it ends unnoticed
    drawn: bool = False  #: its steps are told while it is under way

    def carry_out(self, do: Callable[[Acts], Answer]) -> Answer | None:
        """What the supervisor answered; None where only the dialogue was to be printed.

        Raises `NotConfirmed` when a person thinks better of it, and what ``do`` raises.
        """
        with reach.acts(self.pair) as acts:
            return self.over(acts, do)

    def over(self, acts: Acts, do: Callable[[Acts], Answer]) -> Answer | None:
        """The same over a connection that stands."""
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


def tell_timeline(pair: str, timeline: Mapping[str, Any], form: str) -> None:
    """What happened when in a failover is on standard output."""
    if form == "json":
        plain.print_json({"schema": plain.SCHEMA, "name": pair, **timeline})
        return
    from coloctl.cli.views import render

    render.console().print(render.timeline(pair, timeline))

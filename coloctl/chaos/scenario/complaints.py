"""Raise complaints about several places of a scenario at once.

Called by `chaos.scenario.values` and `chaos.scenario.file`; calls `pairfile.values` to make them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from coloctl.pairfile.values import complaint

#: A place in a table, a sentence about it, and a hint.
Complaint = tuple[tuple[int | str, ...], str, str | None]


def refuse(found: Iterable[Complaint]) -> None:
    """Raise the complaints that were found, if any."""
    errors = [
        InitErrorDetails(type=complaint(sentence, hint), loc=place, input=None)
        for place, sentence, hint in found
    ]
    if errors:
        raise ValidationError.from_exception_data("scenario", errors)


def unlike(
    place: tuple[int | str, ...], sentence: str, name: str, known: Iterable[str]
) -> Complaint:
    """Build a complaint about a name that is none of those known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "there is " + (", ".join(known) or "none")
    return place, f'{sentence} "{name}".', hint


def refuse_twice(names: Iterable[str]) -> None:
    """Refuse names that are given more than once."""
    twice = (name for name, count in Counter(names).items() if count > 1)
    refuse(((), f'Two are called "{name}".', "give each a name of its own") for name in twice)

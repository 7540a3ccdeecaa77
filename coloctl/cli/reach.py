"""Connect to supervisors: one by name, or all that have a folder here.

Called by every verb that asks a supervisor, such as `cli.verbs.status` and `cli.acting`; connects
through `control.client` and asks through `control.acts`. Where no supervisor runs,
`supervisor.leftovers` finds what it left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coloctl import paths, procfs
from coloctl.cli.options import pair_names
from coloctl.control.acts import QUERY_WAIT_S, Acts, read_view
from coloctl.control.client import ControlClient, OnEvent
from coloctl.errors import (
    ColoctlError,
    DeadlineMissed,
    NoSuchPair,
    PreconditionFailed,
    Unreachable,
)
from coloctl.model.view import PairView

#: Where many are asked, one that hangs must not hold up the others.
SURVEY_WAIT_S = 2.0


@contextlib.contextmanager
def acts(pair: str, wait_s: float = QUERY_WAIT_S) -> Iterator[Acts]:
    """Connect to the pair's supervisor, to ask it any act; raises as `connect`."""
    with connect(pair) if wait_s >= QUERY_WAIT_S else connect(pair, wait_s=wait_s) as client:
        yield Acts(client)


def connect(
    pair: str, on_event: OnEvent | None = None, *, wait_s: float = QUERY_WAIT_S
) -> ControlClient:
    """Connect to the pair's supervisor; raises `NoSuchPair` or `Unreachable`.

    Where QEMUs of the pair live without one, the error names them and what can be typed.
    """
    try:
        return ControlClient.connect(paths.control_socket(pair), wait_s, on_event)
    except (NoSuchPair, Unreachable) as error:
        raise _orphaned(pair) or error from error


def _orphaned(pair: str) -> Unreachable | None:
    """Describe the QEMUs of a pair without a supervisor; None where none run.

    Asks no other machine: a verb that only shows something must not wait for one that is off.
    """
    from coloctl.supervisor import leftover, leftovers  # costs 0.1 s, and is seldom needed

    folder = paths.pair_dir(pair)
    living = leftovers.find(folder, dial=False)
    if not living:
        return None
    return Unreachable(leftover.told(folder, living), hint=leftover.advice(folder, living))


@dataclass(frozen=True)
class Looked:
    """The status of one pair as `survey` found it, or the reason why there is none."""

    name: str
    supervisor: Literal["running", "silent", "gone"]
    document: Mapping[str, Any] | None = None  #: of query-pair, as the supervisor sent it
    view: PairView | None = None  #: the same; None also where this version cannot read it
    error: str | None = None  #: why there is no view, a sentence
    hint: str | None = None  #: what can be typed then

    def to_json(self) -> dict[str, Any]:
        """Return the item of `status -f json` without a pair."""
        return {
            "name": self.name,
            "supervisor": self.supervisor,
            "view": self.document,
            "error": self.error,
            "hint": self.hint,
        }


def survey() -> list[Looked]:
    """List every pair that has a folder here, or that runs although its folder was removed."""
    return [_look(name) for name in sorted({*pair_names(), *_without_folder()})]


def ask(name: str) -> Looked:
    """Ask one supervisor for the status of its pair; raises as `connect` and `naming_given_up`."""
    with naming_given_up(name), acts(name) as asked:
        return _answered(asked)


@contextlib.contextmanager
def naming_given_up(name: str) -> Iterator[None]:
    """Name what was given up of the pair with its machine in a `NoSuchPair` that is raised."""
    try:
        yield
    except NoSuchPair as error:
        if said := given_up().get(name):
            sentence = f"No pair called {name} runs here. {said}"
            raise NoSuchPair(sentence, hint=error.hint) from error
        raise


def given_up() -> dict[str, str]:
    """Return sentences on the QEMUs that were given up with their machine, by pair."""
    with contextlib.suppress(PreconditionFailed, OSError):
        if any(paths.given_up_dir().glob("*.json")):
            from coloctl.supervisor import given_up as lists  # costs 0.1 s, and is seldom needed

            return lists.known()
    return {}


def _answered(asked: Acts) -> Looked:
    document = asked.status_document()
    try:
        view = read_view(document)
    except PreconditionFailed as error:
        return Looked(asked.pair, "running", document, None, error.message, error.hint)
    return Looked(asked.pair, "running", document, view)


def _without_folder() -> list[str]:
    """Name the pairs whose folder was removed while their QEMUs run."""
    home = paths.state_dir()
    if not any(path.name == "qmp.sock" and not path.parent.exists()
               for path in procfs.listening_below(home)):  # fmt: skip
        return []
    from coloctl.supervisor import leftovers

    return leftovers.without_folder()


def _look(name: str) -> Looked:
    try:
        with ControlClient.connect(paths.control_socket(name), SURVEY_WAIT_S) as client:
            return _answered(Acts(client, SURVEY_WAIT_S))
    except ColoctlError as error:
        return _why(name, error)


def _why(name: str, error: ColoctlError) -> Looked:
    """Explain why there is no view of a pair, and name what can be typed."""
    if isinstance(error, DeadlineMissed):
        return Looked(name, "silent", error=error.message, hint=error.hint)
    hint: str | None = f"`coloctl stop {name} --force` clears what it left"
    try:
        if orphaned := _orphaned(name):
            error, hint = orphaned, orphaned.hint
    except ColoctlError as worse:  # its journal is damaged
        error, hint = worse, worse.hint
    return Looked(name, "gone", error=error.message, hint=hint)

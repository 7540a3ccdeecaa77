"""Reaching supervisors: one by name, or all that have a folder here."""

from __future__ import annotations

from typing import Any

from coloctl import paths
from coloctl.cli.options import pair_names
from coloctl.control.client import ControlClient, OnEvent
from coloctl.errors import ColoctlError, DeadlineMissed

#: A supervisor answers queries between two steps of its acts, within milliseconds.
TIMEOUT_S = 10.0
#: The same where many are asked and one that hangs must not hold up the others.
SURVEY_TIMEOUT_S = 2.0


def connect(pair: str, on_event: OnEvent | None = None) -> ControlClient:
    """Connected to the pair's supervisor; raises `NoSuchPair` or `Unreachable`."""
    return ControlClient.connect(paths.control_socket(pair), TIMEOUT_S, on_event)


def ask(pair: str, command: str, timeout_s: float = TIMEOUT_S, **arguments: Any) -> Any:
    """What the pair's supervisor answered to one command."""
    with connect(pair) as client:
        return client.execute(command, timeout_s, **arguments)


def survey() -> list[dict[str, Any]]:
    """Every pair that has a folder here: its view, or why there is none.

    ``{"name", "supervisor": "running" | "silent" | "gone", "view": the document of query-pair or
    None, "error": the sentence or None}``
    """
    return [_look(name) for name in pair_names()]


def _look(name: str) -> dict[str, Any]:
    try:
        with ControlClient.connect(paths.control_socket(name), SURVEY_TIMEOUT_S) as client:
            view = client.execute("query-pair", SURVEY_TIMEOUT_S)
    except ColoctlError as error:
        supervisor = "silent" if isinstance(error, DeadlineMissed) else "gone"
        return {"name": name, "supervisor": supervisor, "view": None, "error": error.message}
    return {"name": name, "supervisor": "running", "view": view, "error": None}

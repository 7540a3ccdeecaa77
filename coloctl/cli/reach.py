"""Reaching supervisors: one by name, or all that have a folder here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from coloctl import paths
from coloctl.cli.options import pair_names
from coloctl.control.acts import QUERY_S, Acts
from coloctl.control.client import ControlClient, OnEvent
from coloctl.errors import ColoctlError, DeadlineMissed

#: Where many are asked, one that hangs must not hold up the others.
SURVEY_TIMEOUT_S = 2.0


@contextlib.contextmanager
def acts(pair: str) -> Iterator[Acts]:
    """A connection to the pair's supervisor over which it can be asked anything; as `connect`."""
    with connect(pair) as client:
        yield Acts(client)


def connect(pair: str, on_event: OnEvent | None = None) -> ControlClient:
    """Connected to the pair's supervisor; raises `NoSuchPair` or `Unreachable`."""
    return ControlClient.connect(paths.control_socket(pair), QUERY_S, on_event)


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

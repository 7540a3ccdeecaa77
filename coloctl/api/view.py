"""What a supervisor tells of its pair, as the values that the rest of the program has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from coloctl.model.view import PairView


@cache
def _adapter() -> TypeAdapter[PairView]:
    return TypeAdapter(PairView)


def seen(document: Mapping[str, Any]) -> PairView:
    """The document of `status -f json` as a value; what this version does not know is left out."""
    nodes = {node["name"]: node for node in document["nodes"]}
    return _adapter().validate_python({**document, "nodes": nodes})

"""Encode arguments and answers of a host's operations as JSON, and decode them by their types.

Called by `host.remote`, and at the other end by `host.agent.session` and `host.agent.main`. The
table of types is the annotations of the operations themselves; `model.revive` rebuilds the values.

Invariant: what the annotation of a parameter allows arrives equal; a sequence arrives as a tuple.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any, get_type_hints

from coloctl.model.revive import revive_as


def encode(value: object) -> Any:
    """Encode a value as a document: a dataclass as an object, bytes as ``{"b": base64}``.

    A path and an enum become text, each collection a list. Raises TypeError for other objects.
    """
    if isinstance(value, Enum | PurePath):
        return value.value if isinstance(value, Enum) else str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"b": base64.b64encode(value).decode()}
    if is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return {encode(key): encode(one) for key, one in value.items()}
    if isinstance(value, Collection):
        return [encode(one) for one in value]
    raise TypeError(f"{type(value).__name__} cannot be sent to another machine")


def decode_arguments(
    function: Callable[..., Any], document: Mapping[str, object]
) -> dict[str, Any]:
    """Decode arguments by the annotations of the function's parameters.

    Raises ValueError for one that is missing, is not known, or does not fit its type.
    """
    hints, required = _parameters(function)
    for name in document:
        if name not in hints:
            raise ValueError(f"{name} is not known")
    for name in required:
        if name not in document:
            raise ValueError(f"{name} is missing")
    return {name: revive_as(hints[name], value, name) for name, value in document.items()}


def decode_answer(function: Callable[..., Any], document: object) -> Any:
    """Decode an answer by what the function is annotated to return; raises ValueError."""
    return revive_as(_hints(function)["return"], document, "the answer")


@cache
def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    return get_type_hints(function)


@cache
def _parameters(function: Callable[..., Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return the types of the parameters, ``self`` left out, and those without a default."""
    hints = {name: hint for name, hint in _hints(function).items() if name != "return"}
    given = inspect.signature(function).parameters
    return hints, tuple(name for name in hints if given[name].default is inspect.Parameter.empty)

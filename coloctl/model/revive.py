"""Rebuild values of dataclasses from their JSON documents, with the standard library alone.

Called by `model.view` and `model.verified` for what a supervisor sent, by `host.wire.codec` for
what another machine sent, by `vm`, `check.verdict` and `supervisor.started` for what a file holds,
and by verbs that must start quickly: pydantic would cost `coloctl status` 40 ms. Where another
version wrote the document, unknown keys are left out and absent ones take their default.

Invariant: a value that its type does not allow raises ValueError with its key and the value.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence, Set
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

#: Types of many values of one type, and what such a value becomes.
_COLLECTIONS: Mapping[Any, Callable[[tuple[Any, ...]], Any]] = {
    frozenset: frozenset,
    Set: frozenset,
    Sequence: tuple,
    Collection: tuple,
}


def revive(kind: type[T], document: object, key: str = "") -> T:
    """Rebuild a value of the dataclass ``kind`` from the document that `dataclasses.asdict` gives.

    A path stands there as text, a frozenset as a list.
    ``key`` is where the document stands in a larger one. Raises ValueError.
    """
    if not isinstance(document, Mapping):
        raise _misfit(key, document)
    found: dict[str, Any] = {}
    for name, hint, required in _fields(cast(Hashable, kind)):
        path = f"{key}.{name}" if key else name
        if name in document:
            found[name] = _value(hint, document[name], path)
        elif required:
            raise ValueError(f"{path} is missing")
    return kind(**found)


def revive_as(hint: Any, document: object, key: str = "") -> Any:
    """Rebuild a value of any type that `revive` knows as a field's.

    Bytes stand there as ``{"b": base64}``; a sequence or collection becomes a tuple. Raises
    ValueError.
    """
    return _value(hint, document, key)


@cache
def _fields(kind: Hashable) -> tuple[tuple[str, Any, bool], ...]:
    """Return name and type of each field, and whether it has no default."""
    hints = get_type_hints(kind)
    return tuple(
        (one.name, hints[one.name], one.default is MISSING and one.default_factory is MISSING)
        for one in fields(cast("type[Any]", kind))
    )


def _value(hint: Any, value: object, key: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _one_of(get_args(hint), value, key)
    if origin is Literal:
        if value not in get_args(hint):
            raise _misfit(key, value)
        return value
    if origin is tuple:
        return _tuple(get_args(hint), value, key)
    if origin in _COLLECTIONS:
        return _COLLECTIONS[origin](_tuple((*get_args(hint), Ellipsis), value, key))
    if origin is not None:
        return _mapping(get_args(hint), value, key)
    return _plain(hint, value, key)


def _plain(hint: Any, value: object, key: str) -> Any:
    """Check a value of a type without parameters."""
    if hint is Any:
        return value
    if hint is bytes:
        return _bytes(value, key)
    if is_dataclass(hint):
        return revive(cast("type[Any]", hint), value, key)
    if issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise _misfit(key, value) from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _same(hint, value, key)


def _same(hint: Any, value: object, key: str) -> Any:
    """Check a value that JSON has, and a path."""
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _misfit(key, value)
    return value


def _bytes(value: object, key: str) -> bytes:
    if isinstance(value, Mapping) and value.keys() == {"b"} and isinstance(value["b"], str):
        try:
            return binascii.a2b_base64(value["b"], strict_mode=True)
        except ValueError:
            pass
    raise _misfit(key, value)


def _one_of(hints: Sequence[Any], value: object, key: str) -> Any:
    """Return ``value`` as the first of the types that it fits; raise the last one's error."""
    if value is None and NoneType in hints:
        return None
    *others, last = (hint for hint in hints if hint is not NoneType)
    for hint in others:
        try:
            return _value(hint, value, key)
        except ValueError:
            continue
    return _value(last, value, key)


def _tuple(hints: Sequence[Any], value: object, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _misfit(key, value)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = [hints[0]] * len(value)
    if len(hints) != len(value):
        raise _misfit(key, value)
    return tuple(_value(hint, one, key) for hint, one in zip(hints, value, strict=True))


def _mapping(hints: Sequence[Any], value: object, key: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _misfit(key, value)
    of_name, of_value = hints
    return {
        _value(of_name, name, key): _value(of_value, one, f"{key}.{name}")
        for name, one in value.items()
    }


def _misfit(key: str, value: object) -> ValueError:
    return ValueError(f"{key or 'the document'} is {value!r}, which this coloctl does not know")

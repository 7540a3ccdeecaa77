"""Make the JSON Schema of a dataclass from the types of its fields.

Called by `control.schema` for commands and events. Descriptions are the docstrings below the
fields (`fieldtexts`). It stands for what pydantic would make, which a supervisor does without.

Invariant: a type that has no schema here raises TypeError; none is left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from coloctl.fieldtexts import field_texts

#: What JSON calls the types that it has itself.
_PLAIN: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
}


#: Keys of a field's metadata: its name in JSON where Python has that word for itself, and members
#: of its schema beside those that its type gives.
NAMED, PUBLISHED = "named", "published"


def doc_of(kind: type[object]) -> str:
    """Return the docstring of ``kind`` without its indentation."""
    return inspect.cleandoc(kind.__doc__ or "")


def argument(one: Field[Any]) -> str:
    """Return the name of a field in JSON."""
    return str(one.metadata.get(NAMED, one.name))


def required(one: Field[Any]) -> bool:
    """Return whether a field has no default."""
    return one.default is MISSING and one.default_factory is MISSING


def schema_of(kind: type[Any], *, closed: bool = False) -> dict[str, Any]:
    """Return the schema of the object that a value of the dataclass ``kind`` is in JSON.

    ``closed``: no other member may stand in the object. Raises TypeError.
    """
    parts: dict[str, dict[str, Any]] = {}
    schema, texts = _object(kind, parts), field_texts(kind)
    for one in fields(kind):
        member = schema["properties"].pop(one.name)
        member |= one.metadata.get(PUBLISHED, {})
        if one.name in texts:
            member["description"] = texts[one.name]
        schema["properties"][argument(one)] = _sorted(member)
    if closed:
        schema["additionalProperties"] = False
    if parts:
        schema["$defs"] = _sorted(parts)
    return _sorted(schema)


def _object(kind: type[Any], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a dataclass; those of other classes in it are added to ``parts``."""
    hints, properties = get_type_hints(kind), {}
    for one in fields(kind):
        member = _of(hints[one.name], parts)
        if one.default is not MISSING:
            member["default"] = list(one.default) if one.default == () else one.default
        properties[one.name] = _sorted(member)
    needed = [one.name for one in fields(kind) if required(one)]
    schema = {"properties": properties, "type": "object"}
    return schema | ({"required": needed} if needed else {})


def _of(hint: Any, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a type; raises TypeError for one that has none here."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is Literal:
        words = {"enum": list(inner)} if len(inner) > 1 else {"const": inner[0]}
        return {**words, "type": _PLAIN[type(inner[0])]}
    return _of_several(hint, parts) if inner else _named(hint, parts)


def _of_several(hint: Any, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a type that is made of others; raises TypeError as `_of`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_of(one, parts) for one in inner]}
    if origin is tuple:
        return _tuple(inner, parts)
    if origin in (dict, Mapping):
        return {"additionalProperties": _of(inner[1], parts) or True, "type": "object"}
    raise TypeError(f"{hint!r} has no JSON Schema here")


def _tuple(inner: tuple[Any, ...], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if len(inner) == 2 and inner[1] is Ellipsis:
        return {"items": _of(inner[0], parts), "type": "array"}
    each = [_of(one, parts) for one in inner]
    length = {"maxItems": len(inner), "minItems": len(inner)}
    return {**length, "prefixItems": each, "type": "array"}


def _named(hint: Any, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Refer to the schema of a class among ``parts``, and put it there; raises TypeError."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        parts[hint.__name__] = {"enum": [one.value for one in hint], "type": "string"}
    elif isinstance(hint, type) and is_dataclass(hint):
        parts[hint.__name__] = _sorted(_object(hint, parts))
    else:
        raise TypeError(f"{hint!r} has no JSON Schema here")
    return {"$ref": f"#/$defs/{hint.__name__}"}


def _sorted(schema: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(schema.items()))

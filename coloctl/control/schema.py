"""Check requests to the control socket, and publish its schema.

`control.server` parses every request with it, and `cli.verbs.schema` prints it.
``qmp_schemas/coloctl.json`` stores `document`, as the same folder stores QEMU's own schemas.

Invariant: the schema is made from the classes of `control.commands` and `model.pairevent`, so it
cannot differ from what is checked and sent. Nothing here needs more than the standard library: a
supervisor that follows a killed one imports it while a failover may be under way.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import Field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from coloctl.control.commands import COMMANDS, ControlCommand
from coloctl.control.jsonschema import PUBLISHED, argument, doc_of, required, schema_of
from coloctl.errors import UsageError
from coloctl.fieldtexts import field_texts
from coloctl.model.pairevent import EVENTS
from coloctl.model.revive import revive_as

#: What an argument must be, by its type.
_WANTED: Mapping[Any, str] = {
    str: "a string",
    float: "a number",
    bool: "true or false",
    dict: "an object",
}


def parse(name: str, arguments: Mapping[str, Any]) -> ControlCommand:
    """Read a request for the command ``name``; raises `UsageError` for arguments that do not fit.

    ``-`` in the names of arguments counts as ``_``: earlier clients write dashes.
    """
    kind = COMMANDS[name]
    given = kind.renewed({key.replace("-", "_"): value for key, value in arguments.items()})
    known = _arguments(kind)
    if unknown := [key for key in given if key not in known]:
        raise _refusal(_unknown(kind, unknown[0], known))
    found: dict[str, Any] = {}
    for key, (one, hint) in known.items():
        if key in given:
            found[one.name] = _value(kind, key, one, hint, given[key])
        elif required(one):
            text = field_texts(kind)[one.name]
            raise _refusal(f"{kind.NAME} needs the argument {key}: {text}.")
    return kind(**found)


def _arguments(kind: type[ControlCommand]) -> Mapping[str, tuple[Field[Any], Any]]:
    """Return field and type of each argument of a command, by its name."""
    hints = get_type_hints(kind)
    return {argument(one): (one, hints[one.name]) for one in fields(kind)}


def _refusal(sentence: str) -> UsageError:
    return UsageError(sentence, hint="query-schema lists every command and argument")


def _unknown(kind: type[ControlCommand], key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    return f"{kind.NAME} has no argument {key}; " + (
        f"did you mean {close[0]}?" if close else f"{takes}."
    )


def _value(
    kind: type[ControlCommand], key: str, one: Field[Any], hint: Any, value: object
) -> object:
    """Check the value of one argument; raises `UsageError`."""
    wanted = get_args(hint)[0] if NoneType in get_args(hint) else hint
    if get_origin(wanted) is dict and isinstance(value, dict):
        return _members(kind, key, one, wanted, value)
    try:
        return revive_as(hint, value, key)
    except ValueError:
        if get_origin(wanted) is Literal:
            words = " or ".join(get_args(wanted))
            raise _refusal(f"{kind.NAME}: {key} must be {words}, not {value}.") from None
        must = _WANTED[get_origin(wanted) or wanted]
        raise _refusal(f"{kind.NAME}: {key} must be {must}.") from None


def _members(
    kind: type[ControlCommand], key: str, one: Field[Any], hint: Any, value: dict[str, Any]
) -> dict[str, Any]:
    """Check the members of an argument that is an object; raises `UsageError`."""
    if len(value) < one.metadata.get(PUBLISHED, {}).get("minProperties", 0):
        raise _refusal(f"{kind.NAME}: {key} must be an object that is not empty.")
    found = {}
    for name, member in value.items():
        try:
            found[name] = revive_as(get_args(hint)[1], member)
        except ValueError:
            raise _refusal(
                f"{kind.NAME}: {key}.{name} must be a string, a number, or true or false."
            ) from None
    return found


def document() -> dict[str, Any]:
    """Return the whole schema, ready for JSON; arguments and data are JSON Schemas."""
    return {
        "schema": 2,
        "program": "coloctl",
        "commands": {
            name: {
                "doc": doc_of(kind),
                "arguments": schema_of(kind, closed=True),
                "returns": kind.RETURNS,
            }
            for name, kind in COMMANDS.items()
        },
        "events": {
            name: {"doc": doc_of(kind), "data": schema_of(kind)} for name, kind in EVENTS.items()
        },
    }


def text() -> str:
    """Return the text of ``qmp_schemas/coloctl.json``."""
    return json.dumps(document(), indent=2) + "\n"

"""Check requests to the control socket, and publish its schema.

`control.server` parses every request with it, and `cli.verbs.schema` prints it.
``qmp_schemas/coloctl.json`` stores `document`, as the same folder stores QEMU's own schemas.

Invariant: the schema is made from the models of `control.commands` and `model.pairevent`, so it
cannot differ from what is checked and sent.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from coloctl.control.commands import COMMANDS, ControlCommand
from coloctl.errors import UsageError
from coloctl.model.pairevent import EVENTS

#: What an argument must be, by the type of pydantic's error.
_WANTED: Mapping[str, str] = {
    "string_type": "a string",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "an object",
    "too_short": "an object that is not empty",
}


def parse(name: str, arguments: Mapping[str, Any]) -> ControlCommand:
    """Read a request for the command ``name``; raises `UsageError` for arguments that do not fit.

    ``-`` in the names of arguments counts as ``_``: earlier clients write dashes.
    """
    kind = COMMANDS[name]
    given = {key.replace("-", "_"): value for key, value in arguments.items()}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise UsageError(
            _sentence(kind, error.errors()), hint="query-schema lists every command and argument"
        ) from None


def _sentence(kind: type[ControlCommand], errors: list[ErrorDetails]) -> str:
    """Describe the gravest of ``errors``: an unknown argument, else the first that does not fit."""
    names = {field.alias or name: field for name, field in kind.model_fields.items()}
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    error = (unknown or errors)[0]
    name = str(error["loc"][0])
    if unknown:
        close = difflib.get_close_matches(name, names, n=1)
        known = f"it takes {', '.join(names)}" if names else "it takes none"
        return f"{kind.NAME} has no argument {name}; " + (
            f"did you mean {close[0]}?" if close else f"{known}."
        )
    if error["type"] == "missing":
        return f"{kind.NAME} needs the argument {name}: {names[name].description}."
    if error["type"] == "literal_error":
        expected = error["ctx"]["expected"].replace("'", "")
        return f"{kind.NAME}: {name} must be {expected}, not {error['input']}."
    if len([one for one in errors if one["loc"][0] == name]) > 1:  # no member of a union fits
        value = ".".join(map(str, error["loc"][:-1]))
        return f"{kind.NAME}: {value} must be a string, a number, or true or false."
    return f"{kind.NAME}: {name} must be {_WANTED[error['type']]}."


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes of names: they repeat the name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document() -> dict[str, Any]:
    """Return the whole schema, ready for JSON; arguments and data are JSON Schemas."""
    return {
        "schema": 2,
        "program": "coloctl",
        "commands": {
            name: {
                **_described("arguments", kind.model_json_schema(schema_generator=_Untitled)),
                "returns": kind.RETURNS,
            }
            for name, kind in COMMANDS.items()
        },
        "events": {
            name: _described("data", TypeAdapter(kind).json_schema(schema_generator=_Untitled))
            for name, kind in EVENTS.items()
        },
    }


def _described(member: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Split a schema into its description and the rest, which becomes ``member``."""
    doc = schema.pop("description")
    schema.pop("title")
    for part in schema.get("$defs", {}).values():  # described by its own key already
        part.pop("title")
        part.pop("description", None)
    return {"doc": doc, member: schema}


def text() -> str:
    """Return the text of ``qmp_schemas/coloctl.json``."""
    return json.dumps(document(), indent=2) + "\n"

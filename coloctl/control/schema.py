"""The schema of the control socket: what arrives is checked against the tables of `commands`.

``qmp_schemas/coloctl.json`` stores `document`, as the same folder stores QEMU's own schemas.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from coloctl.control.commands import ALL_COMMANDS, ALL_EVENTS, Argument, Command, Event, Type

_WANTED: Mapping[Type, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a string"),
    "int": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "object": ((dict,), "an object"),
    "scalar": ((str, int, float, bool), "a string, a number, or true or false"),
}

COMMANDS: Mapping[str, Command] = {command.name: command for command in ALL_COMMANDS}
EVENTS: Mapping[str, Event] = {event.name: event for event in ALL_EVENTS}


def check_arguments(command: Command, arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with ``arguments``, in a sentence; None when they fit."""
    return _mismatch(command.name, command.arguments, arguments)


def check_event(name: str, data: Mapping[str, Any]) -> str | None:
    """What is wrong with an event of that name and data, in a sentence; None when it fits."""
    if name not in EVENTS:
        return f"There is no event {name}."
    return _mismatch(name, EVENTS[name].data, data)


def _mismatch(owner: str, known: tuple[Argument, ...], given: Mapping[str, Any]) -> str | None:
    names = [argument.name for argument in known]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            known_names = f"it takes {', '.join(names)}" if names else "it takes none"
            return f"{owner} has no argument {name}; " + (
                f"did you mean {close[0]}?" if close else f"{known_names}."
            )
    for argument in known:
        if argument.name not in given:
            if not argument.optional:
                return f"{owner} needs the argument {argument.name}: {argument.doc}."
        elif wrong := _misfit(argument, given[argument.name]):
            return f"{owner}: {wrong}"
    return None


def _misfit(argument: Argument, value: object) -> str | None:
    types, wanted = _WANTED[argument.type]
    is_bool = isinstance(value, bool) and bool not in types
    if is_bool or not isinstance(value, types):
        return f"{argument.name} must be {wanted}."
    if argument.choices and value not in argument.choices:
        return f"{argument.name} must be {' or '.join(argument.choices)}, not {value}."
    return None


def document() -> dict[str, Any]:
    """The whole schema, ready for JSON."""
    return {
        "schema": 1,
        "program": "coloctl",
        "commands": {
            command.name: {
                "doc": command.doc,
                "arguments": _members(command.arguments),
                "returns": command.returns,
            }
            for command in ALL_COMMANDS
        },
        "events": {
            event.name: {"doc": event.doc, "data": _members(event.data)} for event in ALL_EVENTS
        },
    }


def text() -> str:
    """The text of ``qmp_schemas/coloctl.json``."""
    return json.dumps(document(), indent=2) + "\n"


def _members(arguments: tuple[Argument, ...]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for argument in arguments:
        entry: dict[str, Any] = {"type": argument.type, "doc": argument.doc}
        if argument.optional:
            entry["optional"] = True
        if argument.choices:
            entry["choices"] = list(argument.choices)
        members[argument.name] = entry
    return members

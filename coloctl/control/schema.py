"""Every command and event of the control socket: the tables, and the check of what arrives.

``qmp_schemas/coloctl.json`` stores `document`, as the same folder stores QEMU's own schemas.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Type = Literal["str", "int", "number", "bool", "object", "scalar"]

_WANTED: Mapping[Type, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a string"),
    "int": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "object": ((dict,), "an object"),
    "scalar": ((str, int, float, bool), "a string, a number, or true or false"),
}


@dataclass(frozen=True)
class Argument:
    """One member of a command's arguments, or of an event's data."""

    name: str
    type: Type
    doc: str
    optional: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    name: str
    doc: str
    returns: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Event:
    name: str
    doc: str
    data: tuple[Argument, ...] = ()


_NODE = ("a", "b")

_ALL_COMMANDS = (
    Command("query-commands", "The commands that this supervisor answers.", "[{name}]"),
    Command("query-schema", "This schema.", "the document stored as qmp_schemas/coloctl.json"),
    Command(
        "query-version",
        "The version of the coloctl that runs the supervisor.",
        "{qemu: {major, minor, micro}, package}, with coloctl's numbers where QEMU has its own",
    ),
    Command("query-pair", "The pair as last seen.", "the document of `coloctl status -f json`"),
    Command(
        "query-plan",
        "The QMP commands that a verb would send to each node now; nothing is sent.",
        "the steps in order, each with node, why, and one of launch, command or act",
        (
            Argument("verb", "str", "the verb as on the command line, such as failover"),
            Argument("to", "str", "the node to promote, for failover", True, _NODE),
            Argument("value", "int", "the new checkpoint delay in milliseconds, for set", True),
        ),
    ),
    Command(
        "pair-start",
        "Starts what does not run yet and brings the pair into COLO; answers when that is done.",
        "the pair as in query-pair",
        (Argument("protect", "bool", "false leaves the guest without a secondary", True),),
    ),
    Command(
        "pair-failover",
        "Proves one node dead and promotes the other.",
        "the timeline of the failover",
        (
            Argument("to", "str", "the node that survives; without it the valid one", True, _NODE),
            Argument("force", "bool", "give up the checks that protect data", True),
        ),
    ),
    Command(
        "pair-stop",
        "Shuts the guest down, ends both QEMUs and the supervisor.",
        "{}",
        (
            Argument("force", "bool", "end QEMU without asking the guest", True),
            Argument("timeout-s", "number", "how long the guest may take to shut down", True),
        ),
    ),
    Command(
        "pair-set",
        "Changes a setting of the running pair.",
        "{name, before, after}",
        (
            Argument("name", "str", "the setting", choices=("checkpoint-delay",)),
            Argument("value", "scalar", "the new value; times in milliseconds"),
        ),
    ),
    Command(
        "pair-checkpoint",
        "Takes one checkpoint now; answers when it is completed.",
        "{count, pause-ms}",
    ),
    Command(
        "node-qmp",
        "Sends one QMP command to the QEMU of a node.",
        "what QEMU returned",
        (
            Argument("node", "str", "the node", choices=_NODE),
            Argument("execute", "str", "the QMP command"),
            Argument("arguments", "object", "its arguments", True),
            Argument("oob", "bool", "send it out of band, over the rescue monitor", True),
        ),
    ),
)

_ALL_EVENTS = (
    Event(
        "STATE_CHANGED",
        "The protection of the pair changed.",
        (
            Argument("before", "str", "the state that was left"),
            Argument("fact", "str", "what happened"),
            Argument("after", "str", "the state now"),
            Argument("reason", "str", "why, in a sentence"),
        ),
    ),
    Event(
        "CHECKPOINT",
        "A checkpoint began (the guest is paused) or ended (it runs again).",
        (
            Argument("node", "str", "the primary", choices=_NODE),
            Argument("phase", "str", "begin or end", choices=("begin", "end")),
            Argument("count", "int", "checkpoints since the pair entered COLO"),
            Argument("pause-ms", "number", "how long the guest was paused, at the end", True),
        ),
    ),
    Event(
        "NODE_EVENT",
        "The QEMU of a node sent an event.",
        (
            Argument("node", "str", "the node", choices=_NODE),
            Argument("event", "str", "the name of the event, as in QEMU's schema"),
            Argument("data", "object", "its data, as in QEMU's schema"),
            Argument("timestamp", "number", "seconds since the epoch, by QEMU's clock"),
        ),
    ),
    Event(
        "NODE_DEAD",
        "The QEMU process of a node is gone.",
        (
            Argument("node", "str", "the node", choices=_NODE),
            Argument("how", "str", "exit code or signal, in words"),
        ),
    ),
    Event(
        "STEP",
        "An act has reached one of its steps.",
        (
            Argument("act", "str", "the act, such as failover"),
            Argument("step", "str", "the step, such as fenced"),
            Argument("at-ms", "number", "milliseconds since the act began, where measured", True),
        ),
    ),
    Event(
        "PROGRESS",
        "An act moved on within a long step.",
        (
            Argument("act", "str", "the act, such as start"),
            Argument("step", "str", "the step, such as mirror"),
            Argument("done", "int", "bytes done"),
            Argument("total", "int", "bytes in all"),
        ),
    ),
    Event(
        "FAILED_OVER",
        "A failover is over: the survivor runs the guest alone.",
        (Argument("timeline", "object", "what pair-failover returns"),),
    ),
    Event(
        "CLIENT_DROPPED",
        "The last message to a client that read too slowly; events after it are lost to it.",
        (Argument("reason", "str", "why, in a sentence"),),
    ),
)

COMMANDS: Mapping[str, Command] = {command.name: command for command in _ALL_COMMANDS}
EVENTS: Mapping[str, Event] = {event.name: event for event in _ALL_EVENTS}


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
            for command in _ALL_COMMANDS
        },
        "events": {
            event.name: {"doc": event.doc, "data": _members(event.data)} for event in _ALL_EVENTS
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

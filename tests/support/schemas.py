"""Check QMP commands against a stored schema, as the QEMU that it comes from would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coloctl.qmp.schema import Schema, kinds, like
from coloctl.qmp.value import Command, thaw

_PLAIN: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "number": (int, float),
    "bool": (bool,),
    "null": (type(None),),
}


def check(command: Command, schema: Schema) -> list[str]:
    """List what this binary would refuse in ``command``, a sentence each; empty when it fits."""
    name = command.execute
    kind = schema.paths.get(name, "")
    if not kind.startswith("command"):
        return [f"QEMU {schema.qemu} has no command {name}."]
    wrong = _object(schema, name, command.arguments)
    if command.oob and "oob" not in kind:
        wrong.append(f"QEMU {schema.qemu} does not execute {name} out of band.")
    return wrong


def _object(schema: Schema, path: str, value: Mapping[str, Any]) -> list[str]:
    """Compare ``value`` with the object at ``path`` and the cases of unions that it picks."""
    scopes = [path]
    for scope in scopes:  # grows while it runs: a case may be a union itself
        cases = (f"{scope}[{tag}={word}]" for tag, word in value.items() if isinstance(word, str))
        scopes.extend(case for case in cases if schema.members(case))
    known = {name: f"{scope}.{name}" for scope in scopes for name in schema.members(scope)}
    wrong = []
    for name, item in value.items():
        if name in known:
            wrong += _value(schema, known[name], item)
        else:
            wrong.append(f"{path}.{name} is unknown to QEMU {schema.qemu}.")
    for name in sorted(known.keys() - value.keys()):
        if not schema.paths[known[name]].startswith("optional "):
            wrong.append(f"{known[name]} is missing; QEMU {schema.qemu} requires it.")
    return wrong


def _value(schema: Schema, path: str, value: Any) -> list[str]:
    choices = [_choice(schema, path, kind, value) for kind in kinds(schema.paths[path])]
    fitting = [wrong for wrong in choices if wrong is not None]
    if not fitting:
        expected = schema.paths[path].removeprefix("optional ")
        given = json.dumps(thaw(value), ensure_ascii=False)
        return [f"{path} is {given}; QEMU {schema.qemu} expects {expected}."]
    return min(fitting, key=len)


def _choice(schema: Schema, path: str, kind: str, value: Any) -> list[str] | None:
    """List what is wrong with ``value`` as a ``kind``; None when it is of another kind."""
    target = like(kind)
    if target and not schema.paths[target].startswith(("command", "event")):
        return _value(schema, target, value)
    if target or kind == "object":
        return _object(schema, target or path, value) if isinstance(value, Mapping) else None
    if kind == "list":
        if not isinstance(value, (list, tuple)):
            return None
        return [wrong for item in value for wrong in _value(schema, f"{path}[]", item)]
    return [] if _is(schema, path, kind, value) else None


def _is(schema: Schema, path: str, kind: str, value: Any) -> bool:
    if kind == "any":
        return True
    if kind == "enum":
        return isinstance(value, str) and f"{path}={value}" in schema.paths
    return isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))

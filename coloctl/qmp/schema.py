"""What one QEMU binary can be asked, as a sorted list of paths that people and diffs can read.

``query-qmp-schema`` answers with numbered types that mean nothing in the next build. Distilled,
every command, argument, variant, enum value, return value and event is a path from its command:

====================================================  =============================
``migrate``                                           ``command``
``migrate.uri``                                       ``optional str``
``migrate-set-capabilities.capabilities[]``           ``object``
``….capabilities[].capability=x-colo``                ``value (unstable)``
``chardev-add.backend[type=socket].data.reconnect``   ``optional int (deprecated)``
``blockdev-add[driver=qcow2].file``                   ``str or like blockdev-add``
``query-status().running``                            ``bool``
``COLO_EXIT.reason=error``                            ``value``
====================================================  =============================

``[]`` is the item of a list, ``[tag=case]`` what one case of a union adds, ``=word`` a value of an
enum, ``()`` what a command returns; ``like`` points to where the same type is spelled out.
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coloctl.errors import UsageError
from coloctl.qmp.distill import paths_of
from coloctl.qmp.value import Command, thaw
from coloctl.reading import read_json, read_toml

#: Version of the file's own form.
FORM = 1

_PLAIN: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "number": (int, float),
    "bool": (bool,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Schema:
    """The distilled schema of one binary."""

    qemu: str  #: version, as people write it
    paths: Mapping[str, str]  #: path -> what it is
    _members: Mapping[str, frozenset[str]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        members: dict[str, set[str]] = {}
        for path, kind in self.paths.items():
            parent, dot, name = path.rpartition(".")
            if dot and not name.endswith("[]") and not kind.startswith("value"):
                members.setdefault(parent, set()).add(name)
        frozen = {parent: frozenset(names) for parent, names in members.items()}
        object.__setattr__(self, "_members", frozen)

    def has(self, path: str) -> bool:
        """``path`` exists, also where it runs through a type spelled out elsewhere."""
        return self.find(path) is not None

    def find(self, path: str) -> str | None:
        """The path under which ``path`` is spelled out; None when it does not exist."""
        if path in self.paths:
            return path
        for end in range(len(path) - 1, 0, -1):
            if path[end] in ".[=" and (target := like(self.paths.get(path[:end], ""))):
                return self.find(target + path[end:])
        return None

    def members(self, path: str) -> frozenset[str]:
        """The names of what an object at ``path`` may hold, without the cases of a union."""
        return self._members.get(path, frozenset())

    def values(self, path: str) -> tuple[str, ...]:
        """The words of the enum at ``path``."""
        return tuple(
            key[len(path) + 1 :]
            for key, kind in self.paths.items()
            if key.startswith(f"{path}=") and kind.startswith("value")
        )


def kinds(kind: str) -> tuple[str, ...]:
    """The alternatives in a path's description: ``("str", "like blockdev-add")``."""
    return tuple(kind.partition(" (")[0].removeprefix("optional ").split(" or "))


def like(kind: str) -> str | None:
    """The path that a description points to, if it points to one."""
    for one in kinds(kind):
        if one.startswith("like "):
            return one.removeprefix("like ")
    return None


def distill(answer: Iterable[Mapping[str, Any]], qemu: str) -> Schema:
    """The answer of ``query-qmp-schema`` as a schema; ``qemu`` is the version for people."""
    return Schema(qemu, paths_of(answer))


def dump(answer: Iterable[Mapping[str, Any]], qemu: str) -> str:
    """The text of a file in ``qmp_schemas/`` for what a QEMU answered."""
    return text(distill(answer, qemu))


def text(schema: Schema) -> str:
    """The text of a file in ``qmp_schemas/``: one path per line, sorted, for diffs."""
    document = {"form": FORM, "qemu": schema.qemu, "paths": schema.paths}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> Schema:
    """The schema stored at ``path``; raises `UsageError` when that is none."""
    try:
        document = read_json(path.read_text(encoding="utf-8"))
        if document["form"] == FORM:
            return Schema(str(document["qemu"]), dict(document["paths"]))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a stored QMP schema.", hint="write one with `coloctl schema dump`"
        ) from error
    raise UsageError(
        f"{path} is a stored QMP schema of form {document['form']}, not {FORM}.",
        hint="write it again with `coloctl schema dump`",
    )


def folder() -> Path:
    """Where the stored schemas and ``required.toml`` are: in the checkout, or as installed."""
    checkout = Path(__file__).parents[2] / "qmp_schemas"
    if checkout.is_dir():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "coloctl" / "qmp_schemas"


def diff(old: Schema, new: Schema) -> list[str]:
    """What changed, by path: ``-`` gone, ``+`` come, ``~`` different.

    Nothing is listed below a path that is gone or came as a whole.
    """
    gone = old.paths.keys() - new.paths.keys()
    come = new.paths.keys() - old.paths.keys()
    lines = []
    for path in sorted(old.paths.keys() | new.paths.keys()):
        if path in gone and not gone.intersection(_above(path)):
            lines.append(f"- {path}: {old.paths[path]}")
        elif path in come and not come.intersection(_above(path)):
            lines.append(f"+ {path}: {new.paths[path]}")
        elif path in old.paths and path in new.paths and old.paths[path] != new.paths[path]:
            lines.append(f"~ {path}: {old.paths[path]} -> {new.paths[path]}")
    return lines


def _above(path: str) -> set[str]:
    """The paths that ``path`` belongs to: what it is part of, and the word that picks its case."""
    above = {path[:end] for end, letter in enumerate(path) if letter in ".[=("}
    cases = re.finditer(r"\[([^\]]+)\]", path)
    return above | {f"{path[: case.start()]}.{case[1]}" for case in cases}


def check(command: Command, schema: Schema) -> list[str]:
    """What this binary would refuse in ``command``, a sentence each; empty when it fits."""
    name = command.execute
    kind = schema.paths.get(name, "")
    if not kind.startswith("command"):
        return [f"QEMU {schema.qemu} has no command {name}."]
    wrong = _object(schema, name, command.arguments)
    if command.oob and "oob" not in kind:
        wrong.append(f"QEMU {schema.qemu} does not execute {name} out of band.")
    return wrong


def _object(schema: Schema, path: str, value: Mapping[str, Any]) -> list[str]:
    """``value`` against the object at ``path`` and the cases of its unions that ``value`` picks."""
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
    """What is wrong with ``value`` as a ``kind``; None when it is something else altogether."""
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


@dataclass(frozen=True)
class Requirement:
    """One thing coloctl needs of a binary: any one of these paths."""

    any_of: tuple[str, ...]
    why: str

    def sentence(self) -> str:
        """What is missing, and what for."""
        return f"{' or '.join(self.any_of)} is missing: {self.why}"


def load_required(path: Path) -> tuple[Requirement, ...]:
    """The requirements of ``required.toml``; raises `UsageError` when it is not such a file."""
    try:
        document = read_toml(path.read_text(encoding="utf-8"))
        return tuple(
            Requirement(tuple(str(one) for one in entry["any"]), str(entry["why"]))
            for entry in document["need"]
        )
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a list of requirements: {error}.") from error


def required_missing(schema: Schema, required: Iterable[Requirement]) -> list[Requirement]:
    """The requirements that this binary does not meet, in the order of the file."""
    return [need for need in required if not any(schema.has(path) for path in need.any_of)]


def check_required(schema: Schema, required: Iterable[Requirement]) -> list[str]:
    """The same as sentences; empty when this binary has all that coloctl needs."""
    return [need.sentence() for need in required_missing(schema, required)]

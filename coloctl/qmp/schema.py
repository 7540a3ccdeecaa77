"""Describe what one QEMU binary can be asked, as a sorted list of paths for people and diffs.

Called by `qmp.dialect`, `check.probe` and `cli.verbs.schema`; `qmp.distill` makes the paths.
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coloctl.errors import UsageError
from coloctl.qmp.distill import paths_of
from coloctl.reading import read_json, read_toml

#: Version of the file's own form.
FORM = 1


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
        """Return whether ``path`` exists, also through a type that is spelled out elsewhere."""
        return self.find(path) is not None

    def find(self, path: str) -> str | None:
        """Find the path under which ``path`` is spelled out; None when it does not exist."""
        if path in self.paths:
            return path
        for end in range(len(path) - 1, 0, -1):
            if path[end] in ".[=" and (target := like(self.paths.get(path[:end], ""))):
                return self.find(target + path[end:])
        return None

    def members(self, path: str) -> frozenset[str]:
        """Return the names of the members of an object at ``path``, without cases of a union."""
        return self._members.get(path, frozenset())

    def values(self, path: str) -> tuple[str, ...]:
        """Return the values of the enum at ``path``."""
        return tuple(
            key[len(path) + 1 :]
            for key, kind in self.paths.items()
            if key.startswith(f"{path}=") and kind.startswith("value")
        )


def kinds(kind: str) -> tuple[str, ...]:
    """Split a path's description into its alternatives: ``("str", "like blockdev-add")``."""
    return tuple(kind.partition(" (")[0].removeprefix("optional ").split(" or "))


def like(kind: str) -> str | None:
    """Return the path that a description points to, if it points to one."""
    for one in kinds(kind):
        if one.startswith("like "):
            return one.removeprefix("like ")
    return None


def distill(answer: Iterable[Mapping[str, Any]], qemu: str) -> Schema:
    """Convert the answer of ``query-qmp-schema`` to a schema of version ``qemu``."""
    return Schema(qemu, paths_of(answer))


def text(schema: Schema) -> str:
    """Format the schema as a file in ``qmp_schemas/``: one path per line, sorted, for diffs."""
    document = {"form": FORM, "qemu": schema.qemu, "paths": schema.paths}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> Schema:
    """Load the schema stored at ``path``; raises `UsageError` when it is not a schema."""
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


def diff(old: Schema, new: Schema) -> list[str]:
    """List what changed, by path: ``-`` removed, ``+`` added, ``~`` different.

    A path below one that was removed or added as a whole is not listed.
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
    """Return the paths that ``path`` belongs to: its containers, and the value that selects its
    case.
    """
    above = {path[:end] for end, letter in enumerate(path) if letter in ".[=("}
    cases = re.finditer(r"\[([^\]]+)\]", path)
    return above | {f"{path[: case.start()]}.{case[1]}" for case in cases}


@dataclass(frozen=True)
class Requirement:
    """One capability that coloctl needs of a binary: any one of these paths."""

    any_of: tuple[str, ...]
    why: str

    def sentence(self) -> str:
        """Describe what is missing, and what for."""
        return f"{' or '.join(self.any_of)} is missing: {self.why}"


def load_required(path: Path) -> tuple[Requirement, ...]:
    """Load the requirements of ``required.toml``; raises `UsageError` for another file."""
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
    """List the requirements that this binary does not meet, in the order of the file."""
    return [need for need in required if not any(schema.has(path) for path in need.any_of)]

"""Spell out the numbered types of ``query-qmp-schema`` as paths.

Called by `qmp.schema`, whose head explains how the paths read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]


class _Distiller:
    """The paths of one command or event.

    A type inside itself, or one that is all the arguments of a command, becomes ``like`` that.
    """

    def __init__(
        self,
        types: Mapping[str, Entry],
        roots: Mapping[str, str],
        paths: dict[str, str],
    ) -> None:
        self._types = types
        self._paths = paths
        self._around = dict(roots)

    def members_of(self, path: str, name: str) -> None:
        """Spell out the object type ``name`` at ``path``."""
        entry = self._types[name]
        for member in sorted(entry["members"], key=lambda member: str(member["name"])):
            optional = "optional " if "default" in member else ""
            where = f"{path}.{member['name']}"
            self._paths[where] = optional + self._kind(where, member["type"]) + _features(member)
        for variant in sorted(entry.get("variants", ()), key=lambda variant: str(variant["case"])):
            self.members_of(f"{path}[{entry['tag']}={variant['case']}]", variant["type"])

    def root(self, path: str, name: str) -> None:
        """Spell out the arguments, data or return value of a command or event."""
        self._around[name] = path
        self.members_of(path, name)

    def returned(self, path: str, name: str) -> None:
        """Spell out a return value, unless it is the empty object, which has no meaning."""
        entry = self._types[name]
        if entry["meta-type"] != "object" or entry["members"] or entry.get("variants"):
            self._paths[path] = self._kind(path, name)

    def _kind(self, path: str, name: str) -> str:
        entry = self._types[name]
        meta = entry["meta-type"]
        if meta == "builtin":
            return str(name)
        if meta == "array":
            item = f"{path}[]"
            self._paths[item] = self._kind(item, entry["element-type"])
            return "list"
        if meta == "alternate":
            branches = [self._kind(path, branch["type"]) for branch in entry["members"]]
            return " or ".join(sorted(branches))
        if name in self._around:
            return f"like {self._around[name]}"
        if meta == "enum":
            for value in _values(entry):
                self._paths[f"{path}={value['name']}"] = "value" + _features(value)
            return "enum"
        self._around[name] = path
        self.members_of(path, name)
        del self._around[name]
        return "object"


def _values(entry: Entry) -> Sequence[Entry]:
    """Return an enum's values; ``members`` carries their features, ``values`` is the older form."""
    if "members" in entry:
        return list(entry["members"])
    return [{"name": value} for value in entry["values"]]


def _features(entry: Entry, *more: str) -> str:
    words = sorted([*entry.get("features", ()), *more])
    return f" ({', '.join(words)})" if words else ""


def _roots(types: Mapping[str, Entry]) -> dict[str, str]:
    """Return the types that are all the arguments of a command: known by the command's name
    everywhere.
    """
    roots: dict[str, str] = {}
    for name in sorted(types, reverse=True):
        entry = types[name]
        if entry["meta-type"] == "command" and types[entry["arg-type"]]["members"]:
            roots[entry["arg-type"]] = name
    return roots


def paths_of(answer: Iterable[Entry]) -> dict[str, str]:
    """Return every path of the answer of ``query-qmp-schema`` with its kind, sorted."""
    types = {str(entry["name"]): entry for entry in answer}
    roots = _roots(types)
    paths: dict[str, str] = {}
    for name, entry in types.items():
        meta = entry["meta-type"]
        if meta not in ("command", "event"):
            continue
        distiller = _Distiller(types, roots, paths)
        paths[name] = meta + _features(entry, *(["oob"] if entry.get("allow-oob") else []))
        distiller.root(name, entry["arg-type"])
        if meta == "command":
            distiller.returned(f"{name}()", entry["ret-type"])
    return dict(sorted(paths.items()))

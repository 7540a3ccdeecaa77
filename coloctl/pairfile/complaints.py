"""Translate pydantic's findings into sentences for the person who wrote the file.

Called by `pairfile` for pair files and by `chaos.scenario.tables` and `chaos.scenario.file` for
scenarios.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from coloctl.errors import SpecError
from coloctl.pairfile.tables import PairFile

Loc = tuple[int | str, ...]

_WANTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list in square brackets",
    "tuple_type": "a list in square brackets",
    "model_type": "a table",
    "dict_type": "a table",
}
_BOUND = {
    "greater_than_equal": ("ge", "{value} is too small: the least is {limit}."),
    "less_than_equal": ("le", "{value} is too large: the most is {limit}."),
}


def dotted(loc: Sequence[int | str]) -> str:
    """Write the key as an operator writes it, such as ``disk[0].image.a``."""
    key = ""
    for part in loc:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    return key


def from_validation(
    error: ValidationError, root: type[BaseModel] = PairFile, files: str = "pair files"
) -> list[SpecError]:
    """Make one `SpecError` per finding in a file whose tables are ``root``'s, unknown keys first.

    A missing key that was evidently misspelled is reported once, as the unknown key.
    """
    findings = error.errors(include_url=False)
    missing = {found["loc"] for found in findings if found["type"] == "missing"}
    unknown = [found for found in findings if found["type"] == "extra_forbidden"]
    complaints = []
    for found in unknown:
        loc = found["loc"]
        guess = _likely_key(root, loc, missing)
        if guess:
            missing.discard((*loc[:-1], guess))
        complaints.append(_unknown_key(root, loc, guess, files))
    for found in findings:
        if found in unknown or (found["type"] == "missing" and found["loc"] not in missing):
            continue
        complaints.append(_sentence(found))
    return complaints


def _unknown_key(root: type[BaseModel], loc: Loc, guess: str | None, files: str) -> SpecError:
    if guess:
        hint = f"did you mean {guess}?"
    else:
        hint = "the keys here are " + ", ".join(sorted(_keys_at(root, loc[:-1])))
    return SpecError(dotted(loc), f"There is no such key in {files}.", hint=hint)


def _likely_key(root: type[BaseModel], loc: Loc, missing: set[Loc]) -> str | None:
    """Find the key that was probably meant; one that is still missing is preferred."""
    written = str(loc[-1])
    absent = [str(path[-1]) for path in missing if path[:-1] == loc[:-1]]
    for candidates in (absent, sorted(_keys_at(root, loc[:-1]))):
        if close := difflib.get_close_matches(written, candidates, n=1):
            return close[0]
    return None


def _keys_at(root: type[BaseModel], loc: Loc) -> set[str]:
    """Return the keys of the table at ``loc``."""
    table: Any = root
    for part in loc:
        if isinstance(part, str):
            annotation = table.model_fields[part].annotation
            table = next(iter(get_args(annotation)), annotation)
    fields = table.model_fields.items()
    return {one.validation_alias or name for name, one in fields if not one.exclude}


def _sentence(found: ErrorDetails) -> SpecError:
    key, kind, value = dotted(found["loc"]), found["type"], found["input"]
    context: Mapping[str, Any] = found.get("ctx", {})
    if kind == "pair_file":
        return SpecError(key, context["sentence"], hint=context["hint"])
    if kind == "missing":
        return SpecError(key, "This key is missing.", hint=_missing_hint(found["loc"]))
    if kind == "literal_error":
        return SpecError(
            key, f"{_shown(value)} is not possible here.", hint=f"use {context['expected']}"
        )
    if kind in _BOUND:
        name, sentence = _BOUND[kind]
        return SpecError(key, sentence.format(value=value, limit=context[name]))
    if kind in _WANTED:
        return SpecError(key, f"This must be {_WANTED[kind]}, not {_shown(value)}.")
    return SpecError(key, f"{found['msg']}.")


def _missing_hint(loc: Loc) -> str | None:
    hints: dict[Loc, str] = {
        ("name",): 'begin the file with name = "..."',
        ("guest",): "add a [guest] table with memory",
        ("guest", "memory"): 'write it like memory = "512MiB"',
        ("node",): "add the tables [node.a] and [node.b]",
        ("node", "a"): "add a [node.a] table with host and address",
        ("node", "b"): "add a [node.b] table with host and address",
    }
    if loc[0] == "nic" and loc[-1] == "tap":
        return 'write it like tap = { a = "tap-a", b = "tap-b", bridge = "br0" }'
    if loc[0] == "disk" and loc[-1] == "image":
        return 'write it like image = { a = "a.qcow2", b = "b.qcow2" }'
    return hints.get(loc)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return f'"{value}"' if isinstance(value, str) else str(value)

"""Read scenario files: TOML text in, a `Scenario` out, and a `ScenarioError` for each mistake.

Called by `chaos.run.runner`, `chaos.run.batch` and `cli.verbs.chaos`; calls `pairfile.complaints`
to word mistakes. A complaint names the key as written (``fault[0].target``). The keys that one kind
of fault, workload or check takes besides the common ones are its own, and are looked up where the
kind is registered.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.faults import FAULTS, Fault
from coloctl.chaos.scenario.complaints import Complaint, refuse, unlike
from coloctl.chaos.scenario.values import Params, Scenario
from coloctl.chaos.workloads import WORKLOADS
from coloctl.errors import ScenarioError, SpecError
from coloctl.pairfile.complaints import from_validation
from coloctl.pairfile.values import complaint
from coloctl.reading import read_toml

_BYTES_MAX = 1 << 20
_FILES = "scenario files"
#: Names of `Scenario` in Python that are no keys of a file.
_PYTHON_ALONE = frozenset({"name", "workloads", "faults"})


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of scenario files, for editors."""
    schema = Scenario.model_json_schema()
    for table, kinds in (("FaultSpec", FAULTS), ("FaultChoice", FAULTS), ("Workload", WORKLOADS)):
        schema["$defs"][table]["properties"]["kind"]["enum"] = sorted(kinds)
    schema["properties"]["expect"] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {name: check.params.model_json_schema() for name, check in CHECKS.items()},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def load(path: Path) -> Scenario:
    """Return the scenario in the file at ``path``; raises `ScenarioError` for the first mistake."""
    found, errors = examine(path)
    if found is None:
        first = errors[0]
        sentence = first.message.removeprefix(f"{first.path}: ")
        raise ScenarioError(first.path, sentence + _more(len(errors) - 1), hint=first.hint)
    return found


def _more(count: int) -> str:
    if not count:
        return ""
    many = "is 1 more problem" if count == 1 else f"are {count} more problems"
    return f" There {many}: `coloctl chaos check` shows all."


def examine(path: Path) -> tuple[Scenario | None, list[ScenarioError]]:
    """Return the scenario, or every mistake in the file."""
    try:
        raw = path.read_bytes()
        if len(raw) > _BYTES_MAX:
            raise ScenarioError(str(path), "This is no scenario: it is larger than 1 MiB.")
        document = read_toml(raw.decode())
        for key in _PYTHON_ALONE & document.keys():
            raise ScenarioError(f"{path}: {key}", "There is no such key in scenario files.")
        named = {**document, "name": path.stem}
        return Scenario.model_validate(named, context=_Registered()), []
    except OSError as error:
        return None, [ScenarioError(str(path), f"The file cannot be read: {error.strerror}.")]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return None, [ScenarioError(str(path), f"This is not TOML: {error}.")]
    except ScenarioError as error:
        return None, [error]
    except ValidationError as error:
        return None, [_placed(path, one) for one in from_validation(error, Scenario, _FILES)]


def _placed(path: Path, found: SpecError) -> ScenarioError:
    """Return the complaint with the file in front of its key."""
    return ScenarioError(f"{path}: {found.key}", found.sentence, hint=found.hint)


class _Registered:
    """The registered kinds of faults, workloads and checks, which know the keys of a table."""

    def table(self, what: str, own: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
        """Return the keys of a table with the target that it means, and its checked ``params``."""
        kind, wrong = own.get("kind", ""), list[Complaint]()
        if what == "fault" and own.get("random"):
            if kind or own.get("target"):
                raise complaint("A random fault has no kind of its own.", "leave it out")
            own = {**own, "params": _params("random faults", Params, rest, wrong)}
        elif what == "fault" and not kind:
            raise complaint("This fault has neither a kind nor a list named random.")
        elif isinstance(kind, str) and "kind" in own:  # otherwise the table itself complains
            thing, kinds = ("workload", WORKLOADS) if what == "workload" else ("fault", FAULTS)
            if kind not in kinds:
                refuse([unlike(("kind",), f"There is no {thing} called", kind, kinds)])
            params = _params(f"{thing} {kind}", kinds[kind].params, rest, wrong)
            own = {**own, "params": params}
            if thing == "fault":
                own["target"] = _target(FAULTS[kind], own, wrong)
        refuse(wrong)
        return own

    def checks(self, expect: dict[str, Any]) -> dict[str, Any]:
        """Return the checked ``params`` of each check."""
        found, wrong = dict(expect), list[Complaint]()
        for name, given in expect.items():
            if name not in CHECKS:
                wrong.append(unlike((name,), "There is no check called", name, CHECKS))
            elif isinstance(given, dict):
                kind = CHECKS[name].params
                found[name] = _params(f"check {name}", kind, given, wrong, (name,))
        refuse(wrong)
        return found


def _target(kind: type[Fault[Any]], fault: Mapping[str, Any], wrong: list[Complaint]) -> str:
    """Return the target of a fault, which may be left out for a kind that has only one."""
    target = str(fault.get("target", ""))
    if not target and len(kind.targets) == 1:
        target = kind.targets[0]
    if target not in kind.targets:
        unfit = f'"{target}" is nothing that {kind.kind} can hit.'
        sentence = unfit if target else f"{kind.kind} needs a target."
        wrong.append((("target",), sentence, "one of " + ", ".join(kind.targets)))
    if fault.get("duration_s") is not None and not kind.lasting:
        sentence = f"{kind.kind} does not last, so nothing heals it."
        wrong.append((("duration_s",), sentence, None))
    return target


def _params(
    what: str,
    kind: type[Params],
    given: Mapping[str, Any],
    wrong: list[Complaint],
    place: tuple[str, ...] = (),
) -> Params:
    """Return the keys of one kind, checked; complaints go to ``wrong``."""
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        found = from_validation(error, kind, what)
        wrong += [((*place, one.key), one.sentence, one.hint) for one in found]
        return Params()

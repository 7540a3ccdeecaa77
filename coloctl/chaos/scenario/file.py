"""Read scenario files: TOML text in, a `Scenario` out, and a `ScenarioError` for each mistake.

Called by `chaos.run.runner`, `chaos.run.batch` and `cli.verbs.chaos`; calls `pairfile.complaints`
to word mistakes. A complaint names the key as written (``fault[0].target``). The keys that one kind
of fault, workload or check takes besides the common ones are its own, and are looked up where the
kind is registered.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.scenario.values import Scenario
from coloctl.chaos.workloads import WORKLOADS
from coloctl.errors import ScenarioError, SpecError
from coloctl.pairfile.complaints import from_validation
from coloctl.reading import read_toml

_BYTES_MAX = 1 << 20
_FILES = "scenario files"
#: The registered kinds, which know the keys of their tables.
_KINDS = {"workload": WORKLOADS, "fault": FAULTS, "check": CHECKS}
#: Names of `Scenario` in Python that are no keys of a file.
_PYTHON_ALONE = frozenset({"name", "workloads", "faults"})


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of scenario files, for editors."""
    schema = Scenario.model_json_schema()
    del schema["$defs"]["Params"]  # of fields that a file has not
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
        return Scenario.model_validate(named, context=_KINDS), []
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

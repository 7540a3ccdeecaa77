"""Read scenario files: TOML text in, a `Scenario` out, and a `ScenarioError` for each mistake.

Called by `chaos.run.runner`, `chaos.run.batch` and `cli.verbs.chaos`; calls `pairfile.complaints`
to word mistakes. A complaint names the key as written (``fault[0].target``). The keys that one kind
of fault, workload or check takes besides the common ones are its own, and are looked up where the
kind is registered.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from coloctl.chaos.checks import CHECKS
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.scenario.tables import ChoiceTable, FaultTable, ScenarioFile
from coloctl.chaos.scenario.values import (
    FaultChoice,
    FaultSpec,
    Scenario,
    SteadyState,
    Workload,
)
from coloctl.chaos.workloads import WORKLOADS
from coloctl.errors import ScenarioError, SpecError
from coloctl.pairfile.complaints import from_validation
from coloctl.reading import read_toml

#: Tables of a pair file that a scenario may lay over that of the lab.
PAIR_TABLES = ("guest", "replication", "checkpoint", "detection", "fencing", "policy")
_BYTES_MAX = 1 << 20


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of scenario files, for editors."""
    schema = ScenarioFile.model_json_schema()
    for table, kinds in (
        ("FaultTable", FAULTS),
        ("ChoiceTable", FAULTS),
        ("WorkloadTable", WORKLOADS),
    ):
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
        written = ScenarioFile.model_validate(read_toml(raw.decode()))
    except OSError as error:
        return None, [ScenarioError(str(path), f"The file cannot be read: {error.strerror}.")]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return None, [ScenarioError(str(path), f"This is not TOML: {error}.")]
    except ScenarioError as error:
        return None, [error]
    except ValidationError as error:
        found = from_validation(error, ScenarioFile, "scenario files")
        return None, [_placed(path, one) for one in found]
    complaints = [_placed(path, one) for one in _Kinds(written).complaints()]
    return (None, complaints) if complaints else (_scenario(path.stem, written), [])


def _placed(path: Path, found: SpecError) -> ScenarioError:
    """Return the complaint with the file in front of its key."""
    return ScenarioError(f"{path}: {found.key}", found.sentence, hint=found.hint)


class _Kind(Protocol):
    """A registered kind, as far as a scenario file is concerned."""

    @property
    def params(self) -> type[BaseModel]: ...


class _Kinds:
    """The checks of a file that need the registered kinds, or several of its tables."""

    def __init__(self, written: ScenarioFile) -> None:
        self._written = written

    def complaints(self) -> Iterable[SpecError]:
        """Return every mistake, in the order of the file."""
        written = self._written
        for n, work in enumerate(written.workload):
            yield from _of_kind(f"workload[{n}]", "workload", work.kind, WORKLOADS, work.rest)
        yield from _twice("workload", [work.name or work.kind for work in written.workload])
        names = [fault.name for fault in written.fault if fault.name]
        yield from _twice("fault", names)
        for n, fault in enumerate(written.fault):
            yield from self._fault(f"fault[{n}]", fault, names)
        for name, given in written.expect.items():
            yield from _of_kind(f"expect.{name}", "check", name, CHECKS, given)
        for table in written.pair:
            if table not in PAIR_TABLES:
                hint = "a scenario may change " + ", ".join(PAIR_TABLES)
                yield SpecError(f"pair.{table}", "This table is the lab's.", hint=hint)

    def _fault(self, where: str, fault: FaultTable, names: list[str]) -> Iterable[SpecError]:
        if fault.after and fault.after not in names:
            yield _unlike(f"{where}.after", "There is no fault called", fault.after, names)
        if fault.after and fault.after == fault.name:
            yield SpecError(f"{where}.after", "A fault cannot come after itself.")
        if fault.random and (fault.kind or fault.target):
            yield SpecError(where, "A random fault has no kind of its own.", hint="leave it out")
        elif not fault.random and not fault.kind:
            yield SpecError(where, "This fault has neither a kind nor a list named random.")
        choices: list[tuple[str, FaultTable | ChoiceTable]] = [
            (f"{where}.random[{n}]", one) for n, one in enumerate(fault.random)
        ] or [(where, fault)]
        for place, one in choices:
            if one.kind:
                yield from _of_kind(place, "fault", one.kind, FAULTS, one.rest)
                yield from _aimed(place, one)


def _aimed(where: str, fault: FaultTable | ChoiceTable) -> Iterable[SpecError]:
    kind = FAULTS.get(fault.kind)
    if kind is None:
        return
    if _target(fault) not in kind.targets:
        unfit = f'"{fault.target}" is nothing that {fault.kind} can hit.'
        missing = f"{fault.kind} needs a target."
        hint = "one of " + ", ".join(kind.targets)
        yield SpecError(f"{where}.target", unfit if fault.target else missing, hint=hint)
    if fault.duration_s is not None and not kind.lasting:
        yield SpecError(f"{where}.duration_s", f"{fault.kind} does not last, so nothing heals it.")


def _target(fault: FaultTable | ChoiceTable) -> str:
    targets = FAULTS[fault.kind].targets
    return targets[0] if not fault.target and len(targets) == 1 else fault.target


def _of_kind(
    where: str, what: str, kind: str, kinds: Mapping[str, _Kind], given: Mapping[str, Any]
) -> Iterable[SpecError]:
    if kind not in kinds:
        key = where if what == "check" else f"{where}.kind"
        yield _unlike(key, f"There is no {what} called", kind, kinds)
        return
    try:
        kinds[kind].params.model_validate(dict(given))
    except ValidationError as error:
        for found in from_validation(error, kinds[kind].params, f"{what} {kind}"):
            yield SpecError(f"{where}.{found.key}", found.sentence, hint=found.hint)


def _twice(what: str, names: Iterable[str]) -> Iterable[SpecError]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield SpecError(what, f'Two are called "{name}".', hint="give each a name of its own")
        seen.add(name)


def _unlike(key: str, sentence: str, name: str, known: Iterable[str]) -> SpecError:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "there is " + (", ".join(known) or "none")
    return SpecError(key, f'{sentence} "{name}".', hint=hint)


def _scenario(name: str, written: ScenarioFile) -> Scenario:
    works, first = [], 0
    for work in written.workload:
        params = WORKLOADS[work.kind].params.model_validate(dict(work.rest)).model_dump()
        called = work.name or work.kind
        works.append(Workload(called, work.kind, work.clients, params, first, work.begins))
        first += work.clients
    return Scenario(
        name=name,
        title=written.title,
        why=" ".join(written.why.split()),
        seed=written.seed,
        steady_state=SteadyState(**written.steady_state.model_dump()),
        workloads=tuple(works),
        faults=tuple(_fault(n, fault) for n, fault in enumerate(written.fault, start=1)),
        expect=written.expect,
        pair=written.pair,
        guest=written.guest.model_dump(),
        promises=tuple(written.promises),
        settle_s=written.settle_s,
    )


def _fault(number: int, fault: FaultTable) -> FaultSpec:
    one_of: Sequence[FaultTable | ChoiceTable] = fault.random or [fault]
    choices = tuple(_choice(one) for one in one_of)
    called = fault.name or f"{fault.kind or 'random'}-{number}"
    return FaultSpec(
        called, choices, fault.at_s, fault.when, fault.after, fault.every_s, fault.times
    )


def _choice(fault: FaultTable | ChoiceTable) -> FaultChoice:
    params = FAULTS[fault.kind].params.model_validate(dict(fault.rest)).model_dump()
    weight = fault.weight if isinstance(fault, ChoiceTable) else 1.0
    return FaultChoice(fault.kind, _target(fault), params, fault.duration_s, fault.when, weight)

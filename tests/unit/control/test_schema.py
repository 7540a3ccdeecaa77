"""The control schema is stored and complete, and decides what fits."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from coloctl.control import jsonschema, schema
from coloctl.control.acts import SHUTDOWN_WAIT_S
from coloctl.control.commands import (
    COMMANDS,
    ControlCommand,
    NodeQmp,
    PairFailover,
    PairSet,
    PairStart,
    PairStop,
)
from coloctl.control.jsonschema import required
from coloctl.errors import UsageError
from coloctl.fieldtexts import field_texts
from coloctl.model.pairevent import EVENTS

pytestmark = pytest.mark.unit

STORED = Path(__file__).parents[3] / "qmp_schemas" / "coloctl.json"


def refusal(name: str, arguments: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        schema.parse(name, arguments)
    assert caught.value.hint == "query-schema lists every command and argument"
    return caught.value.message


def test_stored_schema_is_current() -> None:
    remedy = "python -c 'from coloctl.control import schema; print(schema.text(), end=\"\")'"
    assert STORED.read_text() == schema.text(), f"{STORED} is out of date; write it again: {remedy}"


def test_everything_is_documented_and_named_as_in_qmp() -> None:
    for name, kind in COMMANDS.items():
        assert (inspect.getdoc(kind) or "").endswith(".") and kind.RETURNS, name
        assert name == name.lower()
        assert all(field_texts(kind)[one.name] for one in fields(kind)), name
    stored = json.loads(schema.text())
    for name, event in stored["events"].items():
        assert event["doc"].endswith(".") and name == name.upper()
        assert all(one["description"] for one in event["data"]["properties"].values()), name


def test_no_member_has_a_dash() -> None:
    """Only names of commands, steps and enum values have dashes, as QMP has them."""

    def members(part: object) -> Iterator[str]:
        if isinstance(part, dict):
            yield from part.get("properties", ())
            for below in part.values():
                yield from members(below)

    found = set(members(schema.document()))
    assert {"at_ms", "pause_ms", "timeout_s", "ended_s", "fault_ms"} <= found
    assert not [name for name in found if "-" in name]


def test_required_arguments_come_before_optional_ones() -> None:
    for name, kind in COMMANDS.items():
        optional = [not required(one) for one in fields(kind)]
        assert optional == sorted(optional), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"node": "c", "execute": "x"}, "node-qmp: node must be a or b, not c."),
        ({"execute": "x"}, "node-qmp needs the argument node: the node."),
        ({"node": "a", "execute": "x", "oob": 1}, "node-qmp: oob must be true or false."),
        ({"node": "a", "execute": "x", "arguments": []}, "node-qmp: arguments must be an object."),
        ({"node": "a", "execute": 5}, "node-qmp: execute must be a string."),
        ({"node": "a", "exec": "x"}, "node-qmp has no argument exec; did you mean execute?"),
        ({"execute": 1, "zzz": 1},
         "node-qmp has no argument zzz; it takes node, execute, arguments, oob, timeout_s."),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], words: str) -> None:
    assert refusal("node-qmp", arguments) == words


def test_a_command_without_arguments_takes_none() -> None:
    assert refusal("pair-pause", {"x": 1}) == "pair-pause has no argument x; it takes none."


def test_a_request_becomes_a_value_with_its_defaults() -> None:
    asked = schema.parse("node-qmp", {"node": "a", "execute": "x", "arguments": {"p-q": 1}})
    assert asked == NodeQmp(node="a", execute="x", arguments={"p-q": 1}, oob=False, timeout_s=30.0)
    assert schema.parse("pair-failover", {}) == PairFailover(to=None, force=False)
    begun = schema.parse("pair-start", {"from": "b"})
    assert isinstance(begun, PairStart) and (begun.protect, begun.begin_on) == (True, "b")
    assert "it takes protect, from" in refusal("pair-start", {"begin_on": "b"})


@pytest.mark.parametrize("spelling", ["timeout-s", "timeout_s"])
@pytest.mark.parametrize(("value", "fits"), [(2, True), (2.5, True), (True, False), ("2", False)])
def test_a_number_in_either_spelling_and_a_bool_is_none(
    spelling: str, value: Any, fits: bool
) -> None:
    if fits:
        assert schema.parse("pair-stop", {spelling: value}) == PairStop(timeout_s=value)
    else:
        assert refusal("pair-stop", {spelling: value}) == "pair-stop: timeout_s must be a number."


def test_a_guest_has_as_long_to_shut_down_as_the_verb_says() -> None:
    assert PairStop().timeout_s == SHUTDOWN_WAIT_S


def test_settings_are_one_or_more() -> None:
    settings = {"checkpoint-delay": 5, "compare-timeout": "50ms"}
    assert schema.parse("pair-set", {"settings": settings}) == PairSet(settings=settings)
    some = "pair-set: settings must be an object that is not empty."
    assert refusal("pair-set", {"settings": {}}) == some
    assert refusal("pair-set", {"settings": 5}) == "pair-set: settings must be an object."
    scalar = "pair-set: settings.checkpoint-delay must be a string, a number, or true or false."
    assert refusal("pair-set", {"settings": {"checkpoint-delay": [1]}}) == scalar
    assert "pair-set needs the argument settings: the new values" in refusal("pair-set", {})


def test_settings_are_read_as_an_earlier_client_sends_them() -> None:
    first = {"name": "checkpoint-delay", "value": 5}
    assert schema.parse("pair-set", first) == PairSet(settings={"checkpoint-delay": 5})
    both = PairSet(settings={"checkpoint-delay": 5, "compare-timeout": "50ms"})
    assert schema.parse("pair-set", {**first, "more": {"compare-timeout": "50ms"}}) == both
    for wrong in ({"name": "checkpoint-delay"}, {**first, "valu": 5}, {**first, "more": 5}):
        assert "pair-set has no argument " in refusal("pair-set", wrong)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_no_command_knows_is_refused_by_each(name: str) -> None:
    assert f"{name} has no argument dance; " in refusal(name, {"dance": 1})
    assert issubclass(COMMANDS[name], ControlCommand) and name == COMMANDS[name].NAME


@pytest.mark.parametrize("name", EVENTS)
def test_the_schema_of_an_event_is_what_pydantic_makes_of_its_class(name: str) -> None:
    """But for titles, which repeat names, and texts: pydantic takes docstrings of classes too."""

    def bare(schema: Any, *, names: bool = False) -> Any:
        if isinstance(schema, list):
            return [bare(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        left = {} if names else dict.fromkeys(("title", "description"))
        return {
            name: bare(part, names=name in ("properties", "$defs") and not names)
            for name, part in schema.items()
            if name not in left
        }

    written = json.loads(schema.text())["events"][name]["data"]
    assert bare(written) == bare(TypeAdapter(EVENTS[name]).json_schema())
    assert list(written["properties"]) == [one.name for one in fields(EVENTS[name])]


def test_a_type_without_a_schema_is_refused() -> None:
    @dataclass
    class Odd:
        member: set[int]

    with pytest.raises(TypeError, match="has no JSON Schema here"):
        jsonschema.schema_of(Odd)


@pytest.mark.parametrize("value", [None, [], {"x": 1}, 1, True, 2.5, "c"])
def test_any_json_is_taken_or_refused_with_a_sentence(value: Any) -> None:
    """Every argument of every command, with every kind of value that JSON has."""
    for name, kind in COMMANDS.items():
        for one in fields(kind):
            arguments = {"node": "a", "execute": "x", "verb": "stop"}
            known = {jsonschema.argument(other) for other in fields(kind)}
            arguments = {key: text for key, text in arguments.items() if key in known}
            try:
                asked = schema.parse(name, {**arguments, jsonschema.argument(one): value})
            except UsageError as error:
                assert re.match(rf"{name}: {jsonschema.argument(one)}[.x]* must be ", error.message)
            else:
                assert getattr(asked, one.name) == value

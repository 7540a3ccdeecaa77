"""The control schema is stored, complete, and says what fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from coloctl.control import schema

pytestmark = pytest.mark.unit

STORED = Path(__file__).parents[3] / "qmp_schemas" / "coloctl.json"


def test_stored_schema_is_current() -> None:
    remedy = "python -c 'from coloctl.control import schema; print(schema.text(), end=\"\")'"
    assert STORED.read_text() == schema.text(), f"{STORED} is out of date; write it anew: {remedy}"


def test_everything_is_documented_and_named_as_in_qmp() -> None:
    for command in schema.COMMANDS.values():
        assert command.doc.endswith(".") and command.returns, command.name
        assert command.name == command.name.lower()
        assert all(argument.doc and "_" not in argument.name for argument in command.arguments)
    for event in schema.EVENTS.values():
        assert event.doc.endswith(".") and event.name == event.name.upper()


def test_required_arguments_come_before_optional_ones() -> None:
    for command in schema.COMMANDS.values():
        optional = [argument.optional for argument in command.arguments]
        assert optional == sorted(optional), command.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"node": "a", "execute": "query-status"}, None),
        ({"node": "a", "execute": "x", "arguments": {}, "oob": True}, None),
        ({"node": "c", "execute": "x"}, "a or b, not c"),
        ({"execute": "x"}, "needs the argument node"),
        ({"node": "a", "execute": "x", "oob": 1}, "oob must be true or false"),
        ({"node": "a", "execute": "x", "arguments": []}, "must be an object"),
        ({"node": "a", "exec": "x"}, "did you mean execute?"),
        ({"node": "a", "execute": "x", "zzz": 1}, "it takes node, execute"),
    ],
)
def test_arguments(arguments: dict[str, object], words: str | None) -> None:
    wrong = schema.check_arguments(schema.COMMANDS["node-qmp"], arguments)
    assert wrong is None if words is None else words in (wrong or "")


def test_a_bool_is_no_number() -> None:
    stop = schema.COMMANDS["pair-stop"]
    assert schema.check_arguments(stop, {"timeout-s": 2}) is None
    assert schema.check_arguments(stop, {"timeout-s": 2.5}) is None
    assert "must be a number" in (schema.check_arguments(stop, {"timeout-s": True}) or "")


def test_events() -> None:
    assert schema.check_event("NODE_DEAD", {"node": "a", "how": "killed by signal 9"}) is None
    assert "no event" in (schema.check_event("NODE_DED", {}) or "")
    assert "phase must be begin or end" in (
        schema.check_event("CHECKPOINT", {"node": "a", "phase": "middle", "count": 1}) or ""
    )

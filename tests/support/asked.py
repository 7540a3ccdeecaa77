"""The arguments of a request to a control socket, read back from its value."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from coloctl.control.commands import ControlCommand
from coloctl.control.jsonschema import argument


def given(asked: ControlCommand) -> dict[str, Any]:
    """Return the arguments of ``asked`` that are not left at their defaults, by name."""
    values = {one: getattr(asked, one.name) for one in fields(asked)}
    return {argument(one): value for one, value in values.items() if value != _default(one)}


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()

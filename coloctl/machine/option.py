"""Encode values as QEMU's command line reads them: ``key=value`` lists, and JSON.

Called by `machine.cmdline`, `machine.chardev`, `machine.freshcode` and `check.pair`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Scalar = str | int | bool


def keyval(implied: str = "", /, **values: Scalar | None) -> str:
    """Build one option value such as ``socket,id=m0,server=on``; a comma inside a value is doubled.

    ``implied`` is the leading value that QEMU takes without a key. Underscores in keys stay as
    they are; a value of None is left out. Raises `ValueError` for an ``implied`` that QEMU would
    read as a key.
    """
    return pairs(values, implied=implied)


def pairs(values: Mapping[str, Scalar | None], *, implied: str = "") -> str:
    """Build the same as `keyval`, for keys that are not Python names (``reconnect-ms``).

    Raises `ValueError` when ``implied`` would be read as a key.
    """
    if "=" in implied:
        raise ValueError(f"{implied!r} would be read as a key and a value")
    parts = [escape(implied)] if implied else []
    parts += [f"{key}={escape(text(value))}" for key, value in values.items() if value is not None]
    return ",".join(parts)


def escape(value: str) -> str:
    """Escape ``value`` for its place inside a ``key=value`` list."""
    return value.replace(",", ",,")


def text(value: Scalar) -> str:
    """Format a scalar for the command line: booleans are ``on`` and ``off``."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def json_option(value: Mapping[str, Any]) -> str:
    """Encode compact JSON in the order given, as ``-blockdev`` and ``-object`` take it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

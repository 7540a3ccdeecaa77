"""Represent one QMP command as a value that can be compared, hashed and printed.

Called by `qmp.command`, `qmp.cpu`, `qmp.ram` and `qmp.session`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


def freeze(value: Any) -> Any:
    """Return ``value`` as JSON would carry it, with mappings read-only and lists as tuples."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(key): freeze(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """Return a frozen value as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value


@dataclass(frozen=True)
class Command:
    """One QMP command; equal to any other with the same wire form."""

    execute: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    oob: bool = False  #: out of band: answered by the monitor's thread while the main loop hangs

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", freeze(self.arguments))

    def __hash__(self) -> int:
        return hash((self.execute, self.oob, json.dumps(thaw(self.arguments), sort_keys=True)))

    def wire(self) -> dict[str, Any]:
        """Return the message that is sent over the socket, without the id that the session adds."""
        message: dict[str, Any] = {"exec-oob" if self.oob else "execute": self.execute}
        if self.arguments:
            message["arguments"] = thaw(self.arguments)
        return message

    def __str__(self) -> str:
        return json.dumps(self.wire(), ensure_ascii=False)

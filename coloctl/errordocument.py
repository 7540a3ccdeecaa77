"""Write an error as a JSON document and rebuild it from one, so that its class survives a wire.

Called by `control.server` for the answer to a request that failed, and by `control.client` for what
it raises then; `host.wire.requests` does both, and `host.agent.main` refuses a client with it.
Standard library only, because every verb imports it.

Invariant: the exit code, the hint and the class of an error survive, also of a class that the
receiver does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coloctl.errors import ColoctlError


def error_document(error: ColoctlError) -> dict[str, Any]:
    """Return ``error`` as the value of a response's "error" member; `error_from` undoes it.

    "data" holds the exit code, the hint and those attributes of the error that JSON can hold.
    """
    details = {
        key: value
        for key, value in vars(error).items()
        if key not in {"message", "hint"} and _plain(value)
    }
    data: dict[str, Any] = {"exit-code": error.exit_code, "hint": error.hint, "details": details}
    return {"class": error.code, "desc": error.message, "data": data}


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, str | int | float) for item in value)
    return value is None or isinstance(value, str | int | float)


def error_from(document: Mapping[str, Any]) -> ColoctlError:
    """Rebuild the exception that the other end raised, so that its exit code and hint survive.

    A class of error that this coloctl does not know becomes a `ColoctlError` with the code and
    exit code that came along.
    """
    code, message = str(document.get("class")), str(document.get("desc"))
    data = document.get("data") or {}
    kind = _BY_CODE.get(code) or _unknown_kind(code, int(data.get("exit-code", 1)))
    error = kind.__new__(kind)
    # Subclasses compose their message from other arguments; here it is already composed.
    ColoctlError.__init__(error, message, hint=data.get("hint"))
    for key, value in (data.get("details") or {}).items():
        setattr(error, key, tuple(value) if isinstance(value, list) else value)
    return error


def _all_kinds(kind: type[ColoctlError]) -> Iterator[type[ColoctlError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all_kinds(below)


def _unknown_kind(code: str, exit_code: int) -> type[ColoctlError]:
    return type("ColoctlError", (ColoctlError,), {"code": code, "exit_code": exit_code})


#: The class that defines each code: one that only inherits it never stands for the class above it.
_BY_CODE = {kind.code: kind for kind in _all_kinds(ColoctlError) if "code" in vars(kind)}

"""An error survives a wire: its class, sentence, hint, exit code and attributes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from coloctl import errors
from coloctl.errordocument import error_document, error_from

pytestmark = pytest.mark.unit


def every_kind(
    kind: type[errors.ColoctlError] = errors.ColoctlError,
) -> list[type[errors.ColoctlError]]:
    return [kind] + [deeper for below in kind.__subclasses__() for deeper in every_kind(below)]


KINDS = [kind for kind in every_kind() if kind.__module__ == "coloctl.errors"]


def test_every_code_is_its_own() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_a_class_that_inherits_its_code_stands_for_no_other() -> None:
    script = (
        "from coloctl.errors import NotProtected\n"
        "class Late(NotProtected): pass\n"
        "from coloctl.errordocument import error_from\n"
        "again = error_from({'class': 'not-protected', 'desc': 'It is not.'})\n"
        "assert type(again) is NotProtected, type(again)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_rebuilt(kind: type[errors.ColoctlError]) -> None:
    original = kind.__new__(kind)
    errors.ColoctlError.__init__(original, "Something is wrong.", hint="put it right")
    document = json.loads(json.dumps(error_document(original)))
    again = error_from(document)
    assert type(again) is kind
    assert (again.message, again.hint, str(again)) == (
        original.message,
        original.hint,
        str(original),
    )
    assert again.exit_code == kind.exit_code


def test_attributes_that_json_cannot_say_are_left_out() -> None:
    original = errors.LaunchError(
        "QEMU would not start.", node="a", argv=["qemu", "-m"], exit_code=1
    )
    original.transcript = object()  # type: ignore[attr-defined]
    again = error_from(json.loads(json.dumps(error_document(original))))
    assert isinstance(again, errors.LaunchError)
    assert (again.node, again.argv, again.status) == ("a", ("qemu", "-m"), 1)
    assert not hasattr(again, "transcript")


@pytest.mark.parametrize(
    "document",
    [
        {"class": "from-the-future", "desc": "No.", "data": {"exit-code": 5, "hint": "wait"}},
        {"class": "GenericError", "desc": "No."},
        {},
    ],
)
def test_unknown_errors_are_still_errors(document: dict[str, object]) -> None:
    error = error_from(document)
    assert error.code == str(document.get("class"))
    assert error.exit_code == (5 if "data" in document else 1)

"""The wire format: objects cut out of any chunks, errors that survive, imports that stay light."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coloctl import errors
from coloctl.control import wire

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4)


@settings(deadline=None)
@given(OBJECTS, st.sampled_from(["", "\n", " \r\n\t"]), st.lists(st.integers(1, 400), max_size=20))
def test_objects_survive_any_chunking(
    objects: list[dict[str, object]], between: str, cuts: list[int]
) -> None:
    """Cut at any places, and at all of them."""
    stream = between.join(json.dumps(item, ensure_ascii=False) for item in objects).encode()
    for places in (sorted({0, *cuts}), range(len(stream))):
        splitter, found = wire.Splitter(), []
        for begin, end in itertools.pairwise([*places, max(len(stream), *places, 0)]):
            found += [wire.decode(raw) for raw in splitter.feed(stream[begin:end])]
        assert found == objects


@settings(deadline=None)
@given(junk=st.binary(max_size=50))
def test_junk_is_an_error_or_nothing(junk: bytes) -> None:
    splitter = wire.Splitter()
    try:
        for raw in splitter.feed(junk):
            wire.decode(raw)
    except wire.WireError as error:
        assert str(error)


def test_after_junk_the_stream_goes_on() -> None:
    splitter = wire.Splitter()
    with pytest.raises(wire.WireError):
        list(splitter.feed(b"quit\n"))
    assert list(splitter.feed(b'{"a":1}')) == [b'{"a":1}']


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises(wire.WireError):
        wire.decode(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_cannot_be_said_back_is_not_taken(number: str) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(f'{{"id":[{number}]}}'.encode())


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
        "from coloctl.control import wire\n"
        "again = wire.error_from({'class': 'not-protected', 'desc': 'It is not.'})\n"
        "assert type(again) is NotProtected, type(again)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_rebuilt(kind: type[errors.ColoctlError]) -> None:
    original = kind.__new__(kind)
    errors.ColoctlError.__init__(original, "Something is wrong.", hint="put it right")
    document = json.loads(wire.encode(wire.error_document(original)))
    again = wire.error_from(document)
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
    again = wire.error_from(json.loads(wire.encode(wire.error_document(original))))
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
    error = wire.error_from(document)
    assert error.code == str(document.get("class"))
    assert error.exit_code == (5 if "data" in document else 1)


def test_the_client_imports_nothing_heavy() -> None:
    code = "import sys, coloctl.control.client; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "coloctl.control.client" in loaded
    heavy = {"asyncio", "pydantic", "qemu", "click", "rich", "dataclasses", "logging", "inspect"}
    assert not loaded & (heavy | {"coloctl.control.server", "coloctl.control.schema"})


def test_an_object_may_come_byte_by_byte_or_all_at_once() -> None:
    objects = [b'{"a\\\\": "}{\\"", "b": [{}, "\\u005c"]}', b"{}", b'{"execute": "x[{"}']
    stream = b" \n".join(objects)
    whole = list(wire.Splitter().feed(stream))
    splitter, parts = wire.Splitter(), []
    for byte in stream:
        parts += splitter.feed(bytes([byte]))
    assert whole == parts == objects


def test_many_objects_that_come_at_once_are_all_found() -> None:
    assert sum(1 for _ in wire.Splitter().feed(b"{} " * 40_000)) == 40_000


def test_a_request_that_is_too_long_is_refused_whether_it_ends_or_not() -> None:
    for end in (b"", b'"}'):
        with pytest.raises(wire.MessageTooLong):
            list(wire.Splitter().feed(b'{"a": "' + b"x" * wire.MESSAGE_MAX + end))

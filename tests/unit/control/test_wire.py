"""The wire format: objects cut out of any chunks, imports that stay light."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

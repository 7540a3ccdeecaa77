"""Goal: a sealed line gives back what was written, or an error, whatever bit of it was flipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.reading import read_json as parse
from coloctl.sealed import seal, unseal

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.text(max_size=6).filter("sum".__ne__)
DOCUMENTS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=3)


@given(DOCUMENTS)
def test_what_was_sealed_is_read_back(document: dict[str, object]) -> None:
    line = seal(document)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert parse(line)["sum"], "any reader of JSON can read it"
    found = unseal(line)
    assert (found.document, found.sealed) == (document, True)


@given(DOCUMENTS, st.data())
def test_no_flipped_bit_is_another_document(
    document: dict[str, object], data: st.DataObject
) -> None:
    line = bytearray(seal(document)[:-1])
    bit = data.draw(st.integers(0, 8 * len(line) - 1))
    line[bit // 8] ^= 1 << bit % 8
    try:
        assert unseal(bytes(line)).document == document
    except ValueError as error:
        assert str(error).startswith("it")


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_an_object_or_an_error_in_words(line: bytes) -> None:
    try:
        assert isinstance(unseal(line).document, dict)
    except ValueError as error:
        assert str(error).startswith("it")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\x80", "no text"),
        (b"9" * 5000, "too big"),
        (b"[" * 100_000, "too deeply"),
        (b'{"a":' * 100_000, "too deeply"),
        (b"\0\0\0", "no JSON"),
    ],
)
def test_what_is_wrong_is_told_in_a_few_words(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse(content)
    assert len(str(error.value)) < 80


def test_a_line_without_a_checksum_is_told_from_one_whose_checksum_is_damaged() -> None:
    assert not unseal(b'{"a": 1}').sealed
    line = seal({"a": 1})
    for damaged in (
        line.replace(b'"sum"', b'"rum"'),
        line.replace(b"1", b"2", 1),
        line.replace(b'"}', b'0"}'),
    ):
        with pytest.raises(ValueError, match="checksum"):
            unseal(damaged)

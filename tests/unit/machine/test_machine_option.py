"""What option.py writes, QEMU's rules read back unchanged."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.machine.option import json_option, keyval, pairs

pytestmark = pytest.mark.unit

letters = string.ascii_lowercase
keys = st.builds(
    str.__add__, st.sampled_from(letters), st.text(letters + string.digits + "_.-", max_size=12)
)
values = st.text(st.characters(exclude_characters="\0"), max_size=30)
implied_values = st.text(st.characters(exclude_characters="\0="), min_size=1, max_size=30)
documents = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=10,
)


def read(option: str) -> list[str]:
    """QEMU's rule: single commas separate, a doubled one stands for itself (from the left)."""
    items = [""]
    for piece in re.findall(r",,|,|[^,]+", option):
        if piece == ",":
            items.append("")
        else:
            items[-1] += "," if piece == ",," else piece
    return items


@given(st.dictionaries(keys, values, min_size=1, max_size=5))
def test_every_value_survives_the_command_line(given_values: dict[str, str]) -> None:
    items = [item.partition("=") for item in read(pairs(given_values))]
    assert {key: value for key, _, value in items} == given_values


@given(implied_values, st.dictionaries(keys, values, max_size=5))
def test_the_implied_value_stays_in_front(implied: str, rest: dict[str, str]) -> None:
    assert read(pairs(rest, implied=implied))[0] == implied


@given(st.dictionaries(keys, documents, max_size=5))
def test_json_reads_back_as_it_was_in_the_same_order(document: dict[str, object]) -> None:
    text = json_option(document)
    assert json.loads(text) == document
    assert list(json.loads(text)) == list(document)
    assert "\n" not in text


def test_the_words_of_the_command_line() -> None:
    option = keyval("socket", id="m0", server=True, wait=False, port=9003, path=None)
    assert option == "socket,id=m0,server=on,wait=off,port=9003"
    assert keyval("file", path="/srv/a,b") == "file,path=/srv/a,,b"
    assert keyval(romfile="") == "romfile="


def test_an_implied_value_that_reads_as_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="key"):
        keyval("a=b")

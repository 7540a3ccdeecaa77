"""What an annotation allows arrives equal; damage is a sentence that names its place."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.host.wire.codec import decode_answer, decode_arguments, encode

pytestmark = pytest.mark.unit


class Side(StrEnum):
    """Two values."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True)
class Thing:
    """One field of each shape."""

    path: Path
    content: bytes
    side: Side
    sizes: tuple[int, ...] = ()
    inner: Thing | None = None


class Operations:
    """Signatures as those of a host."""

    async def look(
        self,
        path: Path,
        *,
        names: Collection[str],
        things: Sequence[Thing],
        was: bytes | None = None,
        sides: frozenset[Side] = frozenset(),
        ages: Mapping[Path, tuple[float, ...]] | None = None,
    ) -> Mapping[Path, tuple[Thing, ...]] | None:
        """Look."""
        raise NotImplementedError

    async def leave(self) -> None:
        """Leave."""


PATHS = st.builds(Path, st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=9))
THINGS = st.recursive(
    st.builds(
        Thing,
        PATHS,
        st.binary(max_size=9),
        st.sampled_from(Side),
        st.tuples(st.integers()),
        st.none(),
    ),
    lambda inner: st.builds(
        Thing, PATHS, st.binary(max_size=9), st.sampled_from(Side), st.just(()), inner
    ),
    max_leaves=3,
)
ARGUMENTS = st.fixed_dictionaries(
    {
        "path": PATHS,
        "names": st.lists(st.text()).map(tuple),
        "things": st.lists(THINGS, max_size=3).map(tuple),
    },
    optional={
        "was": st.none() | st.binary(),
        "sides": st.frozensets(st.sampled_from(Side)),
        "ages": st.none()
        | st.dictionaries(PATHS, st.tuples(st.floats(allow_nan=False, allow_infinity=False))),
    },
)


def wired(value: object) -> Any:
    """Return what JSON makes of the value's document."""
    return json.loads(json.dumps(encode(value)))


@given(ARGUMENTS)
def test_arguments_arrive_equal(arguments: dict[str, Any]) -> None:
    assert decode_arguments(Operations.look, wired(arguments)) == arguments


@given(st.none() | st.dictionaries(PATHS, st.lists(THINGS, max_size=2).map(tuple), max_size=2))
def test_answers_arrive_equal(answer: dict[Path, tuple[Thing, ...]] | None) -> None:
    assert decode_answer(Operations.look, wired(answer)) == answer


def test_a_path_that_is_no_text_arrives_equal() -> None:
    path = Path(b"/a\xff".decode(errors="surrogateescape"))
    assert decode_arguments(Operations.look, wired({"path": path, "names": [], "things": []})) == {
        "path": path, "names": (), "things": ()
    }  # fmt: skip


GOOD = wired({"path": Path("/a"), "names": ["x"], "things": [Thing(Path("/b"), b"\0", Side.LEFT)]})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path": 1}, "path is 1"),
        ({"path": None}, "path is None"),
        ({"names": "x"}, "names is 'x'"),
        ({"names": {"x": 1}}, "names is"),
        ({"names": [1]}, "names is 1"),
        ({"was": "x"}, "was is 'x'"),
        ({"was": {"b": "x"}}, "was is"),
        ({"was": {"b": "eA==", "c": 1}}, "was is"),
        ({"sides": ["up"]}, "sides is 'up'"),
        ({"things": [{"path": "/b", "content": {"b": ""}}]}, "things.side is missing"),
        ({"things": [{**GOOD["things"][0], "inner": {"path": 1}}]}, "things.inner.path is 1"),
        ({"ages": {"/a": [True]}}, "ages./a is True"),
        ({"owner": "root"}, "owner is not known"),
        ({"path": ...}, "path is missing"),
    ],
)
def test_damage_is_named(change: dict[str, Any], says: str) -> None:
    document = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        decode_arguments(Operations.look, document)


def test_an_operation_without_an_answer_answers_none() -> None:
    assert decode_answer(Operations.leave, None) is None
    with pytest.raises(ValueError, match="the answer is 1"):
        decode_answer(Operations.leave, 1)


@pytest.mark.parametrize("value", [object(), Thing, {"a": {1j}}])
def test_what_has_no_document_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be sent to another machine"):
        encode(value)

"""What `to_json` writes can be read back, also where another version of coloctl wrote it."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.views import FROZEN, LOST, PROTECTED, RESYNC, document

from coloctl.model.revive import revive
from coloctl.model.view import ActProgress, CheckpointView, NodeView, PairView, SettingView

pytestmark = pytest.mark.unit


def some(kind: type, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw any value of a dataclass; numbers are finite, because JSON has no others."""
    finite = st.floats(allow_nan=False, allow_infinity=False)
    hints = get_type_hints(kind)
    drawn = {
        one.name: {float: finite, float | None: st.none() | finite}.get(
            hints[one.name], st.from_type(hints[one.name])
        )
        for one in fields(kind)
    }
    return st.builds(kind, **{**drawn, **fixed})


def views() -> st.SearchStrategy[PairView]:
    """Draw any view of a pair; what was verified and turned away is drawn elsewhere."""
    a, b = (some(NodeView, name=st.just(name)) for name in ("a", "b"))
    nodes = st.builds(lambda a, b: {"a": a, "b": b}, a, b)
    return some(
        PairView, nodes=nodes, checkpoints=some(CheckpointView), verified=st.none(),
        turned_away=st.none(), progress=st.none() | some(ActProgress),
        settings=st.dictionaries(st.text(max_size=9), some(SettingView)),
    )  # fmt: skip


@pytest.mark.parametrize("view", [PROTECTED, LOST, RESYNC, FROZEN])
def test_a_view_is_read_back_as_it_was(view: PairView) -> None:
    assert PairView.from_json(json.loads(json.dumps(view.to_json()))) == view


@given(views())
def test_every_view_is_read_back_as_it_was(view: PairView) -> None:
    assert PairView.from_json(json.loads(json.dumps(view.to_json()))) == view


def test_keys_of_a_newer_supervisor_are_left_out() -> None:
    newer = document()
    newer["nodes"] = [{**node, "colour": "blue"} for node in newer["nodes"]]
    assert PairView.from_json({**newer, "news": 1}) == PROTECTED


def test_keys_that_an_older_supervisor_does_not_know_take_their_default() -> None:
    older = document()
    for field in fields(PairView):
        if field.default is not MISSING:
            del older[field.name]
    seen = PairView.from_json(older)
    assert seen.copied == "" and seen.stale_code == "" and seen.verified is None
    assert seen.nodes == PROTECTED.nodes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"diagnosis": "x"}, "diagnosis is 'x', which this coloctl does not know"),
        ({"generation": "2"}, "generation is '2'"),
        ({"generation": True}, "generation is True"),
        ({"nodes": [{**document()["nodes"][0], "role": "third"}]}, "nodes.a.role is 'third'"),
        ({"nodes": [{"name": "c", "host": "local"}]}, "nodes is 'c'"),
        ({"nodes": [{"name": "a"}]}, "nodes.a.host is missing"),
        ({"settings": []}, r"settings is \[\]"),
        ({"progress": "start"}, "progress is 'start'"),
    ],
)
def test_a_value_that_is_not_known_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PairView.from_json({**document(), **change})


class Colour(StrEnum):
    """Two colours."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Sample:
    """A field of each shape that is not in a `PairView`."""

    pair: tuple[int, str]
    either: int | Colour
    ratio: float
    anything: Any = None
    many: tuple[tuple[int, int], ...] = ()


def test_unions_take_the_first_type_that_fits_and_tuples_their_length() -> None:
    found = revive(Sample, {"pair": [1, "x"], "either": "blue", "ratio": 2, "many": [[1, 2]]})
    assert found == Sample((1, "x"), Colour.BLUE, 2.0, None, ((1, 2),))
    assert isinstance(found.ratio, float) and isinstance(found.either, Colour)
    for wrong in ({"pair": [1]}, {"pair": 1}, {"either": "green"}, {"many": [[1]]}):
        with pytest.raises(ValueError, match=r"(pair|either|many)(\.\d)? is"):
            revive(Sample, {"pair": [1, "x"], "either": 1, "ratio": 0.5, **wrong})
    with pytest.raises(ValueError, match="the document is"):
        revive(Sample, [])

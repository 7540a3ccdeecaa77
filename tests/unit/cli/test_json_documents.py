"""JSON documents of the verbs agree on their keys."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import coloctl.cli

pytestmark = pytest.mark.unit

FILES = sorted(
    path
    for room in ("verbs", "views")
    for path in (Path(coloctl.cli.__file__).parent / room).glob("*.py")
)


def misnamed(text: str) -> list[int]:
    """Return the lines of documents with a schema that have a pair's name under ``pair``."""
    documents = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Dict)
        and "schema" in [key.value for key in node.keys if isinstance(key, ast.Constant)]
    )
    return [
        document.lineno
        for document in documents
        for key in document.keys
        if isinstance(key, ast.Constant) and key.value == "pair"
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_name_of_a_pair_is_under_name(path: Path) -> None:
    assert not misnamed(path.read_text())


def test_a_document_that_calls_it_otherwise_is_found() -> None:
    assert misnamed('print_json({"schema": 1, "pair": pair})') == [1]
    assert not misnamed('print_json({"schema": 1, "name": pair}); {"pair": 1}')

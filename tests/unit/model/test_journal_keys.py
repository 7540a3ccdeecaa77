"""Journal keys are written once, in `model.event`; writers and readers of records share them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from support import house, words

from coloctl.model import event

pytestmark = pytest.mark.unit

#: Keys and values of ``Record.data`` that a restarted supervisor or a checker reads.
KEYS = frozenset(
    {
        event.PAUSED,
        event.FIRST_CONNECTION,
        event.COVERED,
        event.PROTECTION_WANTED,
        event.BOOTS,
        event.SOURCE,
        event.UNFENCED,
        event.EXPOSED_SINCE,
        event.LAUNCHED,
        event.LEADER,
        event.MISSED,
        event.DIVERGENCE,
        event.GENERATION_NOT_KEPT,
        event.ENTERED_COLO,
    }
)

#: Modules that write or read records.
READERS = (
    "coloctl/supervisor/",
    "coloctl/chaos/checks/journal.py",
    "coloctl/chaos/evidence/",
    "coloctl/control/daemon/",
    "coloctl/model/event.py",
    "coloctl/journal.py",
)

#: The same word in another document: the one of `explain` has it as the name of a decision.
OTHERS = frozenset({("coloctl/supervisor/evidence.py", "unfenced")})


def literals(path: str, source: str) -> Iterator[tuple[str, str]]:
    """Find strings that are a key of a record, apart from the definition of its constant."""
    tree = house.parsed(source)
    defined = {
        id(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and path == "coloctl/model/event.py"
    }
    for node in house.nodes_of(source):
        if isinstance(node, ast.Constant) and node.value in KEYS and id(node) not in defined:
            yield path, str(node.value)


@pytest.mark.usefixtures("product")
def test_no_module_spells_a_key_of_a_record_itself() -> None:
    texts = {path: text for path, text in words.sources().items() if path.startswith(READERS)}
    assert all(any(path.startswith(one) for path in texts) for one in READERS)
    found = {one for path, text in texts.items() for one in literals(path, text)}
    assert found == OTHERS


def test_a_key_that_is_spelled_again_is_found() -> None:
    source = 'PAUSED = "paused"\nrecord(data={"missed": "write"})\n'
    assert set(literals("coloctl/model/event.py", source)) == {("coloctl/model/event.py", "missed")}
    assert len(set(literals("coloctl/journal.py", source))) == 2

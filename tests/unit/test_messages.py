"""Every message of an error is a sentence, so that no caller has to repair it.

Goal: a person reads whole sentences, wherever an error is shown. Method: the text in the source is
read, with its placeholders. It begins with a capital letter, a placeholder, a quotation mark, an
option or the name of a program. It ends with a full stop, with a colon and a placeholder for text
of another program, or with a placeholder that is a sentence.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import pytest
from support import house

from coloctl import errors
from coloctl.errors import CommandRefused, OutcomeUnknown

pytestmark = pytest.mark.unit

ERRORS = frozenset(
    name
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ColoctlError)
)

BEGINS = re.compile(r"""[A-Z{'"`-]|(apt|tcc|qemu-img)\b""")
ENDS = re.compile(r"([.?!)]|[.:] \{[^{}]*\}|\{sentence\})$")


def text(value: ast.expr) -> str:
    """Return the literal text of an expression, "" for one that has none."""
    if isinstance(value, ast.Constant):
        return value.value if isinstance(value.value, str) else ""
    if isinstance(value, ast.JoinedStr):
        return "".join(
            text(part) if isinstance(part, ast.Constant) else f"{{{_name(part)}}}"
            for part in value.values
        )
    if isinstance(value, ast.BinOp):
        return text(value.left) + text(value.right)
    return ""


def _name(part: ast.expr) -> str:
    """Spell a placeholder without braces and quotation marks of its own."""
    return re.sub(r"""[{}'"]""", "", ast.unparse(part))


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Find the message of every error that a module makes: its first argument with a space."""
    for node in house.nodes_of(source):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in ERRORS:
            found = [written for one in node.args if " " in (written := text(one))]
            if found:
                yield node.lineno, found[0]


def is_sentence(message: str) -> bool:
    return bool(BEGINS.match(message) and ENDS.search(message.rstrip()))


def test_every_message_is_a_sentence(product: house.Tree) -> None:
    seen = 0
    broken = []
    for name, module in product.items():
        for line, message in messages(module.source):
            seen += 1
            if not is_sentence(message):
                broken.append(f"{name}:{line}: {message}")
    assert not broken, "\n".join(broken)
    assert seen > 400


@pytest.mark.parametrize(
    "source",
    [
        'PreconditionFailed("cannot listen at 10.0.0.1.")',
        'Unreachable(f"No connection to {at}")',
        'SpecError("host", f"{spec} names no kind of host" + " that is known")',
    ],
)
def test_a_broken_message_is_found(source: str) -> None:
    (_, message), *_ = messages(source)
    assert not is_sentence(message)


@pytest.mark.parametrize(
    "source",
    [
        'PreconditionFailed("Cannot listen at 10.0.0.1.", hint="try another port")',
        "UnsupportedQEMU(f\"{path} does not answer as QEMU: {last or 'no output'}\")",
        'UsageError("--name names a pair.")',
    ],
)
def test_a_sentence_is_not_refused(source: str) -> None:
    (_, message), *_ = messages(source)
    assert is_sentence(message)


def test_text_of_qemu_ends_with_a_full_stop() -> None:
    refused = CommandRefused("device_add", "Duplicate device ID 'e0' for device")
    assert refused.message == "QEMU refused device_add: Duplicate device ID 'e0' for device."
    assert refused.desc == "Duplicate device ID 'e0' for device"
    unknown = OutcomeUnknown("pair-stop", "The supervisor closed the connection.")
    assert unknown.message.endswith("is unknown: The supervisor closed the connection.")

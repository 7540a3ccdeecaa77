"""Write JSON objects as lines with a checksum, so that damage is never read as another meaning.

Called by `journal`, `supervisor.history`, `ha.arbiter` and `probe_cache`, whose files are such
lines; JSON is read by `reading`. Lines without a checksum, as an earlier coloctl wrote them, are
read too; the caller decides where they may stand.

Invariant: a line with any single bit flipped is read as what was written, or raises ValueError. All
that bytes can do wrong (depth, numbers of thousands of digits, no text) is a ValueError with text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coloctl.reading import read_json

#: Stands before the checksum, at the end of a line; the object has no other key of that name.
_MARK = b',"sum":"'
_DIGITS = 16
#: What is left of it when its key was damaged.
_ALMOST = re.compile(rb',".{1,8}":"[0-9a-f]{16}"\}$')
_TAIL = len(_MARK) + _DIGITS + len(b'"}')

#: What JSON's readers in other languages still hold exactly, and far beyond any count.
NUMBER_MAX = 2**53


@dataclass(frozen=True)
class SealedLine:
    """One line that was read."""

    document: dict[str, Any]
    sealed: bool  #: its checksum was there, and right


def seal(document: Mapping[str, Any]) -> bytes:
    """Write ``document``, which is not empty, as one line with a checksum and a newline."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return text[:-1] + _MARK + _digest(text) + b'"}\n'


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGITS].encode()


def unseal(line: bytes) -> SealedLine:
    """Read one line, with or without its newline; raises ValueError with the end of a sentence."""
    line = line.removesuffix(b"\n")
    tail = line[-_TAIL:]
    sealed = tail.startswith(_MARK) and tail.endswith(b'"}')
    if sealed:
        text = line[:-_TAIL] + b"}"
        if tail[len(_MARK) : -2] != _digest(text):
            raise ValueError("its checksum is wrong")
        line = text
    document = read_json(line)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    if not sealed and ("sum" in document or _ALMOST.search(line)):
        raise ValueError("its checksum is damaged")
    return SealedLine(document, sealed)

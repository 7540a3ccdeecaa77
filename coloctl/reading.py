"""Read JSON and TOML of others: return a value, or raise ValueError with the end of a sentence.

Used by every layer: pair files, scenarios and every file of coloctl that a person or a disk may
have damaged come through here. Invariant: no bytes end in a traceback: neither depth, nor numbers
of thousands of digits, nor bytes that are not text.
"""

from __future__ import annotations

import json
import tomllib
from typing import Any

#: TOML's integers have 64 bits (toml.io, "Integer"); Python reads longer ones until it raises.
NUMBER_MAX = 2**63 - 1
#: No file of coloctl nests further than a handful.
DEPTH_MAX = 40

DEEP = "it is nested too deeply"
BIG = "it holds a number that is too big"


def read_json(content: bytes | str) -> Any:
    """Read any JSON; raises ValueError for all other bytes."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(DEEP) from None
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg} at character {error.pos + 1})") from None
    except ValueError:  # int(): more digits than Python converts
        raise ValueError(BIG) from None


def read_toml(text: str) -> dict[str, Any]:
    """Read a TOML document; raises `tomllib.TOMLDecodeError`, which is a ValueError."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError(DEEP) from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # int() again
        raise tomllib.TOMLDecodeError(BIG) from None
    _require_usual(document, DEPTH_MAX)
    return document


def _require_usual(value: object, depth: int) -> None:
    """Refuse values that are deeper or bigger than a reader of TOML has to take."""
    if isinstance(value, int) and not -NUMBER_MAX - 1 <= value <= NUMBER_MAX:
        raise tomllib.TOMLDecodeError(BIG)
    if not isinstance(value, dict | list):
        return
    if not depth:
        raise tomllib.TOMLDecodeError(DEEP)
    for inner in value.values() if isinstance(value, dict) else value:
        _require_usual(inner, depth - 1)

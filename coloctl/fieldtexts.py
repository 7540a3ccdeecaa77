"""Read the docstrings that stand below the fields of a class: Python itself keeps none.

Called by `control.schema` and `control.jsonschema` for what the control socket publishes, and by
`pairfile.keys` for the keys of a pair file.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise


def field_texts(owner: type[object]) -> Mapping[str, str]:
    """Return the docstring of each field that the class ``owner`` itself has, by name."""
    return _texts(owner.__module__).get(owner.__name__, {})


@cache
def _texts(module: str) -> Mapping[str, Mapping[str, str]]:
    """Read the docstring of each field in a module, by class and name."""
    found: dict[str, dict[str, str]] = {}
    for one in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(one, ast.ClassDef):
            found[one.name] = texts = {}
            for field, text in pairwise(one.body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(written))
                    ):
                        texts[name] = inspect.cleandoc(written)
    return found

"""More rules of the house: which calls and names are kept for which places."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from support.house import Tree

#: Functions that may send a signal to a process number: its child has not been reaped, so that the
#: kernel cannot have given the number to another process.
SIGNALS_OWN_CHILDREN: Mapping[str, str] = {
    "coloctl.host.launch.discard": "the group of a failed launch, while its leader lives",
    "coloctl.host.local._end_group": "the group of a program, before its leader is reaped",
    "coloctl.control.daemon.spawn.end": "the watcher's group; it was not waited for",
    "coloctl.control.daemon.watcher._forward": "the supervisor, a child that runs",
    "coloctl.check.freshcode.try_out": "a QEMU that was started to try a plugin",
}


def signals_go_by_pidfd(tree: Tree) -> Iterator[str]:
    """A signal goes to a pidfd: a process number may belong to another process by then."""
    allowed = set()
    for module in tree.values():
        for function, line in _kills(module.tree, ""):
            place = f"{module.name}.{function}"
            if place in SIGNALS_OWN_CHILDREN:
                allowed.add(place)
            else:
                yield f"{module.name}:{line} sends a signal to a process number"
    for place in SIGNALS_OWN_CHILDREN.keys() - allowed:
        if place.rpartition(".")[0] in tree:
            yield f"{place} sends no signal to a process number any more"


def _kills(within: ast.AST, function: str) -> Iterator[tuple[str, int]]:
    """Find uses of `os.kill` and `os.killpg`, each with the function around it and its line."""
    for node in ast.iter_child_nodes(within):
        named = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = node.name
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.kill", "os.killpg"):
            yield function, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            for one in node.names:
                if one.name in ("kill", "killpg"):
                    yield function, node.lineno
        yield from _kills(node, named)

"""More rules of the house: which calls and names are kept for which places."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from support.house import Module, Tree, imports

_Function = ast.FunctionDef | ast.AsyncFunctionDef

#: Functions that may send a signal to a process number: its child has not been reaped, so that the
#: kernel cannot have given the number to another process.
SIGNALS_OWN_CHILDREN: Mapping[str, str] = {
    "coloctl.host.launch.discard": "the group of a failed launch, while its leader lives",
    "coloctl.host.late_ends.end": "the group of a program, before its leader is reaped",
    "coloctl.control.daemon.spawn.end": "the watcher's group; it was not waited for",
    "coloctl.control.daemon.watcher._forward": "the supervisor, a child that runs",
    "coloctl.check.freshcode.try_out": "a QEMU that was started to try a plugin",
}


def signals_go_by_pidfd(tree: Tree) -> Iterator[str]:
    """A signal goes to a pidfd: a process number may belong to another process by then."""
    allowed = set()
    for module in tree.values():
        for function, line in _kills(module.tree, "") if "kill" in module.source else ():
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
        elif isinstance(node, ast.Attribute) and node.attr in ("kill", "killpg"):
            if ast.unparse(node.value) == "os":
                yield function, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            for one in node.names:
                if one.name in ("kill", "killpg"):
                    yield function, node.lineno
        yield from _kills(node, named)


#: Definitions that no module of coloctl names, and what they are there for. A class or a module
#: stands for all that it holds.
NAMED_OUTSIDE: Mapping[str, str] = {}

#: Rooms for the programs of users and for pytest.
PUBLIC = frozenset({"api", "pytest_plugin"})

#: Decorators that only change how a definition is called; any other may register it somewhere.
PLAIN_DECORATORS = frozenset(
    {"property", "cached_property", "staticmethod", "classmethod", "cache", "lru_cache"}
    | {"contextmanager", "asynccontextmanager", "dataclass", "overload", "final"}
)

#: Bases from outside that call no member of a class by themselves.
PLAIN_BASES = frozenset({"Protocol", "Generic", "Exception"})


def nothing_is_only_for_tests(tree: Tree) -> Iterator[str]:
    """Each definition is named by a module of coloctl besides itself, or is meant for others.

    A name at the head of a module is resolved through imports. A member of a class counts as named
    where any module reads an attribute of that name: a dead method hides behind a living one of
    the same name. The rule does not see fields and members of enums, which documents hold, members
    of a class that a library may call, and two dead definitions that name each other.
    """
    found = dict(_unnamed(tree))
    for place in NAMED_OUTSIDE:
        below = [name for name in found if f"{name}.".startswith(f"{place}.")]
        if not below and any(place.startswith(f"{name}.") for name in tree):
            yield f"{place} needs no exception: a module of coloctl names it"
        for name in below:
            del found[name]
    for name, line in found.items():
        yield f"{name}, line {line}, is named by no module of coloctl"


def _unnamed(tree: Tree) -> Iterator[tuple[str, int]]:
    named: set[str] = set()
    attributes: Counter[str] = Counter()
    classes = {}
    for module in tree.values():
        named |= _named_elsewhere(module)
        attributes += _reads(module.nodes)
        classes |= {node.name: node for node in module.nodes if isinstance(node, ast.ClassDef)}
    for module in tree.values():
        if module.part in PUBLIC:
            continue
        own = _loads(module.nodes)
        for name, node in _definitions(module.tree):
            if f"{module.name}.{name}" not in named and own[name] == _loads(ast.walk(node))[name]:
                yield f"{module.name}.{name}", node.lineno
        for holder in module.nodes:
            if isinstance(holder, ast.ClassDef) and _is_closed(holder, classes):
                inside = _loads(ast.walk(holder))
                for name, node in _definitions(holder):
                    if inside[name] + attributes[name] == _reads(ast.walk(node))[name]:
                        yield f"{module.name}.{holder.name}.{name}", node.lineno


def _definitions(within: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    """Find what a module or a class defines, without fields, dunders and what is registered."""
    for node in within.body:
        names: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if all(_is_plain(decorator) for decorator in node.decorator_list):
                names = [ast.Name(node.name)]
        elif isinstance(node, ast.Assign):
            names = node.targets
        elif isinstance(node, ast.AnnAssign) and isinstance(within, ast.Module):
            names = [node.target]
        for name in names:
            if isinstance(name, ast.Name) and not name.id.startswith("__"):
                yield name.id, node


def _is_plain(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function).rpartition(".")[2] in PLAIN_DECORATORS


def _is_closed(holder: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> bool:
    """Return whether no library knows a class by one of its bases, and so may call a member."""
    for base in holder.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if name in classes and name != holder.name:
            if not _is_closed(classes[name], classes):
                return False
        elif name not in PLAIN_BASES:
            return False
    return True


def _named_elsewhere(module: Module) -> set[str]:
    """Find the dotted names that a module imports, and those it reads of what it imports."""
    named = set(imports(module))
    local: dict[str, str] = {}
    for node in module.nodes:
        if isinstance(node, ast.Import):
            local |= {one.asname: one.name for one in node.names if one.asname}
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                local[one.asname or one.name] = f"{node.module}.{one.name}"
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and (parts := _dotted(node)):
            named.add(".".join([local.get(parts[0], parts[0]), *parts[1:]]))
    return named


def _dotted(node: ast.expr) -> list[str]:
    """Split ``a.b.c``; empty where it begins with anything but a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (home := _dotted(node.value)):
        return [*home, node.attr]
    return []


def _loads(nodes: Iterable[ast.AST]) -> Counter[str]:
    return Counter(
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )


def _reads(nodes: Iterable[ast.AST]) -> Counter[str]:
    return Counter(
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    )


#: The parts that get a pair's status as a `PairView`.
READ_VIEWS = frozenset({"api", "bench", "chaos", "cli", "control"})


def views_are_read_by_attribute(tree: Tree) -> Iterator[str]:
    """A view is a `PairView`: no key of its document is spelled where it is read."""
    for module in tree.values():
        if module.part not in READ_VIEWS:
            continue
        for node in module.nodes:
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and isinstance(node.slice.value, str)
                and _last_name(node.value) == "view"
            ):
                yield f"{module.name}:{node.lineno} reads {ast.unparse(node)}"


def _last_name(node: ast.expr) -> str:
    """Return 'view' for `view`, `x.view` and `x.view()`."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


#: Help texts of commands are for operators.
HELP_TEXTS = "coloctl.cli.verbs"


def raises_are_named(tree: Tree) -> Iterator[str]:
    """A public function names in its docstring each error that it raises itself."""
    for module in tree.values():
        if not module.name.startswith(HELP_TEXTS):
            for function, doc in _public_functions(module.tree, ""):
                for error in sorted(set(_raised(function.body))):
                    if not re.search(rf"\b{error}\b", doc):
                        yield f"{module.name}:{function.lineno} {function.name} raises {error}"


def _public_functions(within: ast.AST, doc: str) -> Iterator[tuple[_Function, str]]:
    """Find public functions and methods with what documents them; of `__init__`, the class too."""
    for node in ast.iter_child_nodes(within):
        own = ""
        if isinstance(node, _Function | ast.ClassDef):
            own = ast.get_docstring(node) or ""
        if isinstance(node, _Function):
            if node.name[0] != "_" or node.name == "__init__":
                yield node, f"{doc}\n{own}" if node.name == "__init__" else own
        elif not isinstance(node, ast.ClassDef) or node.name[0] != "_":
            yield from _public_functions(node, own or doc)


def _raised(body: Iterable[ast.AST]) -> Iterator[str]:
    """Find the errors that these statements raise by name and do not catch by the same name."""
    for node in body:
        if isinstance(node, _Function | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            if name[0].isupper() and name != "NotImplementedError":
                yield name
        caught: set[str] = set()
        if isinstance(node, ast.Try):
            caught = set().union(*(_names_in(one.type) for one in node.handlers))
            yield from _raised([*node.handlers, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.With) and "suppress" in ast.unparse(node.items[0]):
            caught = _names_in(node.items[0])
        inner = node.body if isinstance(node, ast.Try) else ast.iter_child_nodes(node)
        yield from (name for name in _raised(inner) if name not in caught)


def _names_in(node: ast.AST | None) -> set[str]:
    """Return the last part of every name in an expression."""
    named = [] if node is None else list(ast.walk(node))
    attributes = {one.attr for one in named if isinstance(one, ast.Attribute)}
    return attributes | {one.id for one in named if isinstance(one, ast.Name)}

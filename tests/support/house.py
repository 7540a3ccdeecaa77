"""The rules of the house: functions from the source tree to sentences on what breaks them."""

from __future__ import annotations

import ast
import functools
import gc
import graphlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = "coloctl"

#: The lowest first; a module imports from its own layer and from those below it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "errors",
            "errordocument",
            "clock",
            "tasks",
            "wholefile",
            "ratelimit",
            "paths",
            "probe_cache",
            "reading",
            "reserve",
            "sealed",
            "bounded",
            "procfs",
            "urgency",
            "regular",
            "interrupts",
            "flocks",
            "journalfile",
            "fieldtexts",
        }
    ),
    frozenset({"model"}),
    frozenset({"pairfile", "journal", "metrics", "certs", "hostlist"}),
    frozenset({"qmp", "machine", "host", "lab", "nbd"}),
    frozenset({"asked", "vm", "vm_open"}),
    frozenset({"colo"}),
    frozenset({"ha"}),
    frozenset({"check"}),
    frozenset({"supervisor"}),
    frozenset({"control"}),
    frozenset({"chaos"}),
    frozenset({"bench"}),
    frozenset({"api", "pytest_plugin"}),
    frozenset({"cli", "__main__"}),
)

#: They would not know each other on four different machines either.
SIBLINGS = LAYERS[3]

#: Which part may import what comes from outside; whatever is not named is open to all.
KEEPERS: Mapping[str, frozenset[str]] = {
    "qemu": frozenset({"qmp"}),
    "click": frozenset({"cli"}),
    "rich": frozenset({"cli"}),
    "jinja2": frozenset({"chaos"}),
    "junitparser": frozenset({"chaos"}),
    "pyroute2": frozenset({"lab"}),
    "cryptography": frozenset({"certs"}),
}

#: model/ decides; whoever acts, waits, or looks at the clock lives further up.
ACTS = frozenset(
    {"asyncio", "io", "logging", "os", "selectors", "signal", "socket", "subprocess", "threading"}
    | {"time", "random", "secrets", "shutil", "tempfile"}
)

#: Connecting to a monitor, polling an idempotent query, reconnecting a workload.
RETRIES = frozenset(
    {f"{ROOT}.qmp.session", f"{ROOT}.qmp.monitor", f"{ROOT}.qmp.wait"}
    | {f"{ROOT}.chaos.workloads.store"}
)

FILE_LINES = 350
FUNCTION_LINES = 60
#: Class names that two modules may use, each with the reason.
SHARED_NAMES: Mapping[str, str] = {}
FORBIDDEN_ENDINGS = ("Manager", "Base", "Impl")


@functools.cache
def parsed(source: str) -> ast.Module:
    """Parse a text once for all rules; the tree is only read."""
    return ast.parse(source)


@functools.cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """Find every node of a text's tree once for all rules."""
    return tuple(ast.walk(parsed(source)))


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name and its text."""

    name: str
    source: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        """What the parser made of the text."""
        return parsed(self.source)

    @property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the tree."""
        return nodes_of(self.source)

    @functools.cached_property
    def imported(self) -> tuple[str, ...]:
        """Dotted names that it imports anywhere in its text, lazily or for types as well."""
        return tuple(_imported(self))

    @property
    def part(self) -> str:
        """The first name below the root, which decides the layer; the root itself is ''."""
        return part_of(self.name)


Tree = Mapping[str, Module]
Rule = Callable[[Tree], Iterator[str]]


@functools.cache
def product() -> Tree:
    """Read every module of the product, by dotted name, once in a process.

    That makes a million objects which live to the end. The garbage collector stands still
    meanwhile, and never looks at them later: it would take longer than the parser.
    """
    root = Path(__file__).parents[2] / ROOT
    texts = {str(file.relative_to(root.parent)): file.read_text() for file in root.rglob("*.py")}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        modules = parse(texts)
        for module in modules.values():
            nodes_of(module.source)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
    return modules


def parse(sources: Mapping[str, str]) -> dict[str, Module]:
    """The same from texts by path ("coloctl/qmp/wait.py")."""
    modules = {}
    for path, source in sorted(sources.items()):
        parts = path.removesuffix(".py").split("/")
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = Module(name, source, is_package)
    return modules


def part_of(name: str) -> str:
    """'qmp' of 'coloctl.qmp.wait', '' of 'coloctl'."""
    return name.partition(".")[2].partition(".")[0]


def imports(module: Module) -> Iterator[str]:
    """Dotted names that the module imports anywhere in its text, lazily or for types as well."""
    yield from module.imported


def _imported(module: Module) -> Iterator[str]:
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*home, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inner_imports(module: Module, tree: Tree) -> Iterator[str]:
    """Modules of this tree that the module imports, each by the longest name that is a module."""
    for name in imports(module):
        target = name
        while target and target not in tree:
            target = target.rpartition(".")[0]
        if target and target != module.name:
            yield target


def _layer(part: str) -> int | None:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


def imports_point_down(tree: Tree) -> Iterator[str]:
    """An import never reaches into a higher layer, and every part has its layer."""
    for module in tree.values():
        here = _layer(module.part)
        if module.part and here is None:
            yield f"{module.name} is in no layer"
            continue
        for target in inner_imports(module, tree):
            there = _layer(part_of(target))
            if there is not None and (here is None or there > here):
                yield f"{module.name} imports {target}, which is in a higher layer"


def siblings_do_not_know_each_other(tree: Tree) -> Iterator[str]:
    """qmp, machine, host and lab never import one another."""
    for module in tree.values():
        for target in inner_imports(module, tree):
            parts = {module.part, part_of(target)}
            if len(parts) == 2 and parts <= SIBLINGS:
                yield f"{module.name} imports its sibling {target}"


def no_cycles(tree: Tree) -> Iterator[str]:
    """The modules can be put in an order in which each imports only earlier ones."""
    graph = {name: set(inner_imports(module, tree)) for name, module in tree.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "imports go in a circle: " + " <- ".join(error.args[1])


def outside_has_keepers(tree: Tree) -> Iterator[str]:
    """Libraries that one part is there to hide are imported by that part only."""
    for module in tree.values():
        for name in imports(module):
            keepers = KEEPERS.get(name.partition(".")[0])
            if keepers is not None and module.part not in keepers:
                yield f"{module.name} imports {name}: only {_listed(keepers)} may"


def only_lab_and_host_enter_namespaces(tree: Tree) -> Iterator[str]:
    """No setns, unshare or nsenter, called or named in a string, elsewhere."""
    words = {"setns", "unshare", "nsenter"}
    for module in tree.values():
        if module.part in {"lab", "host"}:
            continue
        for node in module.nodes:
            named = (
                (isinstance(node, ast.Attribute) and node.attr in words)
                or (isinstance(node, ast.Name) and node.id in words)
                or (isinstance(node, ast.Constant) and node.value in words)
            )
            if named:
                yield f"{module.name}:{node.lineno} touches namespaces: only host, lab may"


def model_is_pure(tree: Tree) -> Iterator[str]:
    """model/ imports nothing that acts, and opens no file."""
    for module in tree.values():
        if module.part != "model":
            continue
        for name in imports(module):
            if name.partition(".")[0] in ACTS:
                yield f"{module.name} imports {name}, so it is not pure"
        for node in module.nodes:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"open", "print"}:
                yield f"{module.name}:{node.lineno} calls {ast.unparse(node.func)}, not pure"


def retries_are_few_and_end(tree: Tree) -> Iterator[str]:
    """tenacity only where a retry is harmless, always with an end and with the true error."""
    for module in tree.values():
        if not any(name.partition(".")[0] == "tenacity" for name in imports(module)):
            continue
        if module.name not in RETRIES:
            yield f"{module.name} imports tenacity: only {_listed(RETRIES)} may"
        for node in module.nodes:
            if isinstance(node, ast.Call) and _called(node) in {
                "retry",
                "Retrying",
                "AsyncRetrying",
            }:
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if "stop_after_delay" not in given.get("stop", ""):
                    yield f"{module.name}:{node.lineno} retries without stop_after_delay"
                if given.get("reraise") != "True":
                    yield f"{module.name}:{node.lineno} retries without reraise=True"


def modules_say_what_they_are(tree: Tree) -> Iterator[str]:
    """Every module begins with a docstring."""
    for module in tree.values():
        if not ast.get_docstring(module.tree):
            yield f"{module.name} has no docstring"


def files_fit_in_the_head(tree: Tree) -> Iterator[str]:
    """Files and functions stay short enough to be read at once."""
    for module in tree.values():
        lines = module.source.count("\n")
        if lines >= FILE_LINES:
            yield f"{module.name} has {lines} lines, {FILE_LINES} or more"
        for node in module.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length >= FUNCTION_LINES:
                    yield f"{module.name}.{node.name} has {length} lines, {FUNCTION_LINES} or more"


def names_mean_something(tree: Tree) -> Iterator[str]:
    """No module is called utils, no class Manager, Base or Impl, no wait a patience or timeout."""
    for module in tree.values():
        if module.name.rpartition(".")[2].strip("_") in {"util", "utils"}:
            yield f"{module.name}: a module is named after what it knows"
        for node in module.nodes:
            if isinstance(node, ast.ClassDef) and node.name.endswith(FORBIDDEN_ENDINGS):
                yield f"{module.name}.{node.name}: a class is named after what it is"
            if isinstance(node, ast.Name) and node.id.endswith(("PATIENCE_S", "TIMEOUT_S")):
                yield f"{module.name}.{node.id}: an end is a DEADLINE_S, a wait a WAIT_S"


def class_names_are_unique(tree: Tree) -> Iterator[str]:
    """One class name stands for one thing, so that no reader meets it twice."""
    places: dict[str, list[str]] = {}
    for module in tree.values():
        for node in module.nodes:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module.name)
    for name, modules in places.items():
        if len(modules) > 1 and name not in SHARED_NAMES:
            yield f"class {name} stands in {', '.join(modules)}"
        elif len(modules) == 1 and name in SHARED_NAMES:
            yield f"class {name} stands in one place: it needs no exception"


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

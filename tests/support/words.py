"""Measure how the product is written: collect its prose, and find what breaks the rules of words.

`tests/unit/test_words.py` asserts what is found here. A room is the folder of a source file, or a
document. Its findings, each with file and line, and what else can be printed:

    python tests/support/words.py --list supervisor            all files of the folder
    python tests/support/words.py --list supervisor/loop.py docs/operating.md
    python tests/support/words.py --figures                    one line per package
    python tests/support/words.py --outline coloctl/supervisor/loop.py

Run it from the repository's root. The rules are in `docs/coding-style.md`, the words in
`docs/glossary.md`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support import house

TOP = Path(__file__).parents[2]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Each group of retired words: the pattern, and the phrases in which such a word is plain English.
RETIRED: Mapping[str, tuple[str, str | None]] = {
    "pronoun": (
        r"\b(nobody|somebody|whoever|whatever|everybody|anybody|someone|no one)\b",
        None,
    ),
    "he": (r"\b(he|him|his|himself)\b", None),
    "told": (r"\b(told|said|tells)\b", r"\bcan(not)? be told apart\b"),
    "behind": (
        r"\bbehind\b",
        r"\b(left?|leav\w+|lag\w*|fall\w*)( \w+){0,3} behind\b|\bahead of it or behind\b"
        r"|\bbehind (a|an|the|each|its|one) (\w+ )?"
        r"(proxy|link|wrapper|bridge|port|slot|script|tap|device|loop)\b",
    ),
    "lacks": (r"\black(s|ed)?(?=[.,;:)]|$)", None),
    "road": (r"\broads?\b", r"`roads?`"),
    "theatre": (
        r"\b(play(s|ed|ing|er|ers)?|rehears\w+|audience|curtain|theatre|actors?|cast|scenes?"
        r"|stor(y|ies))\b",
        None,
    ),
    "strike": (
        r"\b(strik(e|es|ing)|struck|blows?|dealt|deals?|victims?|fallen)\b",
        r"\b(deals?|dealt) with\b|struck_s|--blow\b",
    ),
    "court": (
        r"\b(accus\w+|acquit\w*|guilt\w*|innocen\w*|testif\w+|judg\w+|vouch\w*|witness(es)?)\b",
        # `witness` is the name of the lab's third machine, as users type it.
        r"none_accused|witness\.qcow2|`vouched`|hv2\W+(and )?witness|machine witness|`witness`",
    ),
    "sit": (r"\b(sits?|sitting|sat|vacat\w+)\b", None),
    "house": (
        r"\b(ledgers?|deeds?|vigil|keepers?|kin|grip|unison|doorkeeper|newborns?|obituary|epitaph"
        r"|arrears|surmis\w+|remed(y|ies)|reigns?|sovereign|pulse|twins?|anew|ow(e|es|ed|ing)|mute"
        r"|oftener|goods|whom|heart)\b",
        r"--kill-whom=\w+",
    ),
    "word": (
        r"\b(newest|newer|older|last|latest|durable|its|their|same|late|damaged) words?\b"
        r"|'s words?\b|\bin words\b|\bword (about|of) (the|a|its|each|both)\b",
        None,
    ),
    "ruin": (r"\bruin\w*\b", r"ruin_noticed|secondary-(code-)?ruined|kind = \"ruin\"|`ruin`"),
    "stage": (r"\bstag(e|es|ing)\b", None),
    "world": (r"\bworlds?\b", None),
}

#: A stage of a replication is QEMU's business; a run of faults happens in an environment.
STAGED = (
    "coloctl/chaos/",
    "coloctl/bench/",
    "coloctl/api/",
    "docs/chaos.md",
    "docs/scenarios.md",
    "docs/bench.md",
)

#: Parts of names that no module, class, function or parameter has.
NAMES = _words(
    """road roads struck strike blow dealt victim cast players audience ledger deed deeds vigil kin
    grip unison doorkeeper newborn obituary epitaph accuse acquit guilty reign felt torn surmise
    arrears remedy rehearsal witness sovereign"""
)

#: Names that users type or parse: keys of files and documents.
FROZEN = frozenset({"none_accused", "ruin_noticed", "stranger_got_nothing", "struck_s", "vouched"})

#: First words of a docstring's first line. A new one is a reviewed line.
VERBS = _words(
    """Abandon Abort Accept Acknowledge Acquire Add Adopt Advance Align Allocate Allow Announce
    Answer Append Apply Arm Ask Assemble Assert Assign Attach Await Balance Begin Bind Block Bound
    Break Bring Build Call Cancel Cap Capture Carry Catch Change Check Choose Claim Classify Clean
    Clear Clip Close Collapse Collect Combine Commit Compare Compile Complete Compute Conclude
    Configure Confirm Connect Consume Contrast Convert Copy Corrupt Count Create Cut Decide Decode
    Deduplicate Defer Delay Delete Deliver Deny Derive Describe Detach Detect Determine Diagnose
    Digest Disable Discard Disconnect Dispatch Distil Divert Download Drain Draw Drive Drop Dump
    Edit Emit Empty Enable Encode End Enforce Engage Ensure Enter Erase Escape Estimate Evaluate
    Exchange Exclude Execute Exit Expand Expect Explain Export Extend Extract Fail Feed Fence Fetch
    Fill Filter Find Finish Flag Flush Fold Follow Force Forget Format Forward Free Freeze Gather
    Generate Get Group Grow Guard Handle Hash Heal Hide Hold Identify Ignore Import Include
    Increment Infer Initialize Inject Insert Inspect Install Interrupt Invert Invoke Isolate Iterate
    Join Journal Keep Kill Launch Leave Lift Limit Link List Listen Load Locate Lock Log Look Lower
    Make Map Mark Match Measure Merge Migrate Mirror Mount Move Name Narrow Negotiate Normalize Note
    Notify Number Observe Obtain Offer Open Order Override Overwrite Pack Parse Partition Pass Pause
    Perform Pick Place Plan Poll Pop Predict Prepare Print Probe Process Produce Promote Propagate
    Protect Prove Provide Prune Publish Pull Pump Push Put Query Queue Quit Quote Raise Rank Read
    Rebuild Recall Receive Recognize Recompute Reconcile Record Recover Redact Redirect Reduce
    Refresh Refuse Register Reject Relay Release Remember Remove Rename Render Repair Repeat Replace
    Replay Reply Report Request Require Resend Reserve Reset Resolve Restart Restore Resume Resync
    Retry Return Reverse Revive Rewrite Rotate Round Route Run Sample Save Scale Scan Schedule
    Scrape Seal Search Seed Select Send Serialize Serve Set Settle Shift Show Shrink Shut Sign
    Signal Skip Sleep Slice Slow Sort Spawn Spell Split Start State Stop Store Stream Strip
    Subscribe Substitute Subtract Sum Summarize Supervise Suspend Swap Sweep Switch Take Terminate
    Test Thaw Throttle Time Toggle Touch Trace Track Translate Trigger Trim Truncate Try Turn
    Unblock Undo Unlock Unmount Unpack Unregister Update Use Validate Verify Wait Wake Walk Warn
    Watch Weigh Withdraw Wrap Write Yank Yield"""
)

#: Verbs that are nouns as well: "Count of pages" orders nothing.
NOUNS_TOO = _words(
    """Answer Claim Copy Count Digest End Guard Journal Limit Line Link List Log Map Mark Name
    Number Order Place Plan Process Record Report Score State Stream Sum Test Time Trace
    Type"""
)
AFTER_A_NOUN = _words("of in is are was that which")

#: A method that implements a protocol may point to it.
IMPLEMENTS = re.compile(r"^See `[\w.]+`\.")

STARTERS = _words(
    """What Everything Nothing Something Nobody Somebody Whoever Whatever Whether How Why Where When
    It This That Those These Who Which Whose Neither Everybody Anybody"""
)

#: A head need not name these: every package may use them.
COMMON = house.LAYERS[0] | {"model"}
HEAD_CHARACTERS = 100
EVERY_LAYER = 5
#: So many callers a head names one by one; of more it names the main ones.
CALLERS_NAMED = 4

DOCUMENTS = ("README.md", "scenarios/README.md")
EXEMPT = "docs/glossary.md"


@dataclass(frozen=True, order=True)
class Text:
    """One piece of prose: ``kind`` is docstring, comment, message, document or help."""

    path: str
    line: int
    kind: str
    text: str


@dataclass(frozen=True, order=True)
class Finding:
    """One breach of a rule; ``rule`` is the group of retired words or the name of the rule."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"

    @property
    def room(self) -> str:
        """The folder of a source file, or the document itself."""
        return room_of(self.path)


@dataclass(frozen=True)
class Documented:
    """One function, class or module with its docstring, None where it has none."""

    path: str
    line: int
    name: str
    kind: str
    doc: str | None
    public: bool = False

    @property
    def room(self) -> str:
        """The folder of the source file."""
        return room_of(self.path)


def room_of(path: str) -> str:
    """Return the folder of a source file, or the path of a document."""
    return path if path.endswith(".md") else path.rpartition("/")[0]


# -- collectors


def sources() -> dict[str, str]:
    """Return the text of every module of the product by its path from the root."""
    return {path_of(module): module.source for module in house.product().values()}


def path_of(module: house.Module) -> str:
    """Return the path of a module's file from the root."""
    return module.name.replace(".", "/") + ("/__init__.py" if module.is_package else ".py")


def documents() -> Iterator[Text]:
    """Collect README.md, docs/ and scenarios/README.md; the glossary lists the retired words.

    In a fence of the kind ``diff`` a line that begins with ``-`` is an example of what to avoid.
    The path of a module is a name, which `bad_names` checks, and no prose.
    """
    files = [TOP / name for name in DOCUMENTS] + sorted((TOP / "docs").glob("*.md"))
    for file in files:
        path = str(file.relative_to(TOP))
        if path == EXEMPT:
            continue
        lines, avoided = list[str](), False
        for line in file.read_text().split("\n"):
            if line.startswith("```"):
                avoided = line == "```diff"
            lines.append("" if avoided and line.startswith("-") else line)
        yield Text(path, 1, "document", without_paths("\n".join(lines)))


def without_paths(text: str) -> str:
    """Replace each path of a module, such as ``control/wire.py``, by blanks of its length."""
    return re.sub(r"\b\w+(?:/\w+)+\.py\b", lambda match: " " * len(match[0]), text)


def helps() -> Iterator[Text]:
    """Collect the help of every command, as the command line prints it."""
    import click

    from coloctl.cli.verbs import cli

    def each(command: click.Command, context: click.Context) -> Iterator[str]:
        yield command.get_help(context)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from each(inner, click.Context(inner, info_name=name, parent=context))

    top = click.Context(cli, info_name="coloctl")
    for text in each(cli, top):
        yield Text("coloctl/cli/verbs/help", 1, "help", text)


def prose(path: str, source: str) -> Iterator[Text]:
    """Collect the docstrings, comments and messages of one module."""
    nodes = house.nodes_of(source)
    strings = {id(node): node for node in _docstrings(nodes)}
    for node in strings.values():
        yield Text(path, node.lineno, "docstring", str(node.value))
    yield from _comments(path, source)
    yield from _messages(path, nodes, frozenset(strings))


def _docstrings(nodes: Iterable[ast.AST]) -> Iterator[ast.Constant]:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


#: A string or, as its group, a comment, in a text that the parser takes. In Python 3.11 no string
#: holds its own quotation mark, an f-string neither. `tokenize` takes fifteen times as long.
STRING_OR_COMMENT = re.compile(
    r'''"""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*"|'''
    r"""'''(?:\\.|[^\\])*?'''|'(?:\\.|[^'\\\n])*'|"""
    r"(#[^\n]*)",
    re.DOTALL,
)


def _comments(path: str, source: str) -> Iterator[Text]:
    """Collect comments; lines of comments that follow each other are one text."""
    begun, lines = 0, list[str]()
    line, seen = 1, 0
    for match in STRING_OR_COMMENT.finditer(source):
        if match[1] is None:
            continue
        line += source.count("\n", seen, match.start())
        seen = match.start()
        text = match[1].lstrip("#:!").strip()
        alone = not source[source.rfind("\n", 0, seen) + 1 : seen].strip()
        if lines and (line != begun + len(lines) or not alone):
            yield Text(path, begun, "comment", "\n".join(lines))
            lines = []
        if not lines:
            begun = line
        lines.append(text)
    if lines:
        yield Text(path, begun, "comment", "\n".join(lines))


def _messages(path: str, nodes: Iterable[ast.AST], docs: frozenset[int]) -> Iterator[Text]:
    """Collect string literals that contain a space; a placeholder of an f-string is ``{}``."""
    inside: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            parts = [
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            ]
            text = "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in inside or id(node) in docs:
                continue
            text = node.value
        else:
            continue
        if " " in text:
            yield Text(path, node.lineno, "message", text)


def functions(path: str, source: str) -> Iterator[Documented]:
    """Collect every module, class, property and function with its docstring.

    A function is public at the module's level or in a public class, without a leading ``_``; what
    is nested in a function, overloaded, or a method with two underscores is not.
    """
    tree = house.parsed(source)
    yield Documented(path, 1, "", "module", ast.get_docstring(tree))
    yield from _inner(path, tree, public=True)


def _inner(path: str, within: ast.AST, *, public: bool) -> Iterator[Documented]:
    for node in ast.iter_child_nodes(within):
        if isinstance(node, ast.ClassDef):
            doc = ast.get_docstring(node)
            yield Documented(path, node.lineno, node.name, "class", doc)
            yield from _inner(path, node, public=public and node.name[0] != "_")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
            is_property = marks & {"property", "cached_property", "setter"}
            open_ = public and node.name[0] != "_" and "overload" not in marks and not is_property
            kind = "property" if is_property else "function"
            doc = ast.get_docstring(node)
            yield Documented(path, node.lineno, node.name, kind, doc, open_)
            yield from _inner(path, node, public=False)
        elif not isinstance(node, ast.expr):  # no expression holds a statement
            yield from _inner(path, node, public=public)


# -- rules


@cache
def _patterns() -> dict[str, tuple[re.Pattern[str], re.Pattern[str] | None]]:
    def compiled(text: str) -> re.Pattern[str]:
        return re.compile(text.replace(" ", r"\s+"), re.IGNORECASE)

    return {
        group: (compiled(bad), compiled(fine) if fine else None)
        for group, (bad, fine) in RETIRED.items()
    }


def retired(text: Text) -> Iterator[Finding]:
    """Find the retired words of a text, outside the phrases in which they are allowed."""
    for group, (bad, fine) in _patterns().items():
        if group == "stage" and not text.path.startswith(STAGED):
            continue
        left = fine.sub(lambda match: " " * len(match[0]), text.text) if fine else text.text
        for match in bad.finditer(left):
            line = text.line + text.text.count("\n", 0, match.start())
            around = left[max(0, match.start() - 35) : match.end() + 35]
            yield Finding(text.path, line, group, " ".join(around.split()))


def bad_names(path: str, source: str) -> Iterator[Finding]:
    """Find retired words in names of modules, classes, functions and public parameters."""
    stem = path.rpartition("/")[2].removesuffix(".py")
    named = [(1, stem)]
    for node in house.nodes_of(source):
        if isinstance(node, ast.ClassDef):
            named.append((node.lineno, node.name))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named.append((node.lineno, node.name))
            if node.name[0] != "_":
                every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                named += [(one.lineno, one.arg) for one in every]
    for line, name in named:
        parts = {part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)}
        if parts & NAMES and name not in FROZEN:
            yield Finding(path, line, "name", name)


def is_imperative(doc: str | None) -> bool:
    """Return whether a docstring begins with a verb in the imperative."""
    words = (doc or "").split()
    if not words:
        return False
    first = words[0].strip(",;:.")
    if first in NOUNS_TOO and len(words) > 1 and words[1] in AFTER_A_NOUN:
        return False
    return first in VERBS or bool(IMPLEMENTS.match(doc or ""))


def starts_badly(doc: str | None) -> bool:
    """Return whether a docstring begins with a pronoun or a question word."""
    words = (doc or "").split()
    return bool(words) and re.split(r"[',;:.]", words[0])[0] in STARTERS


def first_lines(each: Iterable[Documented]) -> Iterator[Finding]:
    """Find docstrings that begin with a forbidden word or, of functions, with no verb."""
    for one in each:
        begun = " ".join((one.doc or "").split())[:70]
        if starts_badly(one.doc):
            yield Finding(one.path, one.line, "starter", f"{one.name}: {begun}")
        elif one.kind == "function" and not is_imperative(one.doc) and (one.public or one.doc):
            rule = "imperative" if one.doc else "no docstring"
            yield Finding(one.path, one.line, rule, f"{one.name}: {begun}")


# -- module heads


def heads(tree: house.Tree) -> Iterator[Finding]:
    """Find module docstrings that do not say what the module is for and who calls it.

    1. The first sentence has at most 100 characters and says what the module is for.
    2. The head names a module or package that imports it, as `` `supervisor.loop` `` or
       `` `supervisor/` ``. A package, and a module that no module imports, need not. A module that
       five or more packages import may say "Used by every layer" instead.
    3. Where it imports from another package, it names one module or package that it imports;
       model/ and the lowest modules do not count.
    4. A dotted name that begins with a package's name exists, so a head cannot rot.
    5. Where up to four modules call it, it names each of them, or the package. A caller uses one of
       its functions or classes, for more than annotations.
    """
    users: dict[str, set[str]] = {name: set() for name in tree}
    callers: dict[str, set[str]] = {name: set() for name in tree}
    uses = {name: set(house.inner_imports(module, tree)) for name, module in tree.items()}
    for name, targets in uses.items():
        for target in targets:
            users[target].add(name)
        for target in () if tree[name].is_package else _called(tree[name], tree):
            callers[target].add(name)
    for name, module in tree.items():
        path = path_of(module)
        for rule, text in _head(module, tree, users[name], uses[name]):
            yield Finding(path, 1, rule, text)
        unnamed = {one for one in callers[name] if not _any(_meant(module, tree), {one})}
        if unnamed and not module.is_package and len(callers[name]) <= CALLERS_NAMED:
            yield Finding(path, 1, "head", "does not name its caller " + _short(unnamed))


def _called(module: house.Module, tree: house.Tree) -> Iterator[str]:
    """Return the modules of which it uses a function or a class for more than annotations."""
    notes = {
        id(part)
        for node in module.nodes
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if note is not None
        for part in ast.walk(note)
    }
    used: dict[str, set[str]] = {}
    for node in module.nodes:
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in notes:
            written = _dotted(node) or ast.unparse(node)
            used.setdefault(written.split(".")[0], set()).add(written)
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name, local = f"{node.module}.{alias.name}", alias.asname or alias.name
                parts = [one.removeprefix(local) for one in used.get(local, ())]
                if name in tree and any(part[1:] and not part.isupper() for part in parts):
                    yield name
                elif node.module in tree and name not in tree and parts and not local.isupper():
                    yield node.module


def _dotted(node: ast.expr) -> str:
    """Spell ``a.b.c`` as `ast.unparse` does, only faster; empty for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _meant(module: house.Module, tree: house.Tree) -> set[str | None]:
    """Return the modules and packages that a head names."""
    named = re.findall(r"`([a-z_][\w./]*)`", ast.get_docstring(module.tree) or "")
    return {_resolved(one, tree) for one in named} - {None}


def _head(
    module: house.Module, tree: house.Tree, users: set[str], uses: set[str]
) -> Iterator[tuple[str, str]]:
    doc = ast.get_docstring(module.tree) or ""
    joined = " ".join(doc.split("\n\n")[0].split())
    first = re.split(r"(?<=\.)\s", joined)[0]
    if len(first) > HEAD_CHARACTERS or not first.endswith("."):
        yield "head", f"first sentence has {len(first)} characters or no full stop: {first[:60]}"
    named = set(re.findall(r"`([a-z_][\w./]*)`", doc))
    for one in sorted(named):
        if not _exists(one, tree):
            yield "head", f"`{one}` does not exist"
    if module.is_package:
        return
    meant = {_resolved(one, tree) for one in named} - {None}
    packages = {house.part_of(user) for user in users}
    everywhere = len(packages) >= EVERY_LAYER and "Used by every layer" in " ".join(doc.split())
    if users and not everywhere and not _any(meant, users):
        yield "head", "names no caller; imported by " + _short(users)
    other = {one for one in uses if house.part_of(one) not in COMMON | {module.part, ""}}
    if other and not _any(meant, other):
        yield "head", "names nothing that it calls; imports " + _short(other)


def _any(meant: set[str | None], modules: set[str]) -> bool:
    return any(
        name == one or name.startswith(f"{one}.") for name in modules for one in meant if one
    )


def _short(names: set[str]) -> str:
    return ", ".join(sorted(name.removeprefix(f"{house.ROOT}.") for name in names)[:6])


def _resolved(name: str, tree: house.Tree) -> str | None:
    """Return the module that a name in backticks means, by its longest prefix that is one."""
    target = f"{house.ROOT}.{name.rstrip('/').removesuffix('.py').replace('/', '.')}"
    while target != house.ROOT:
        if target in tree:
            return target
        target = target.rpartition(".")[0]
    return None


def _exists(name: str, tree: house.Tree) -> bool:
    """Return whether a dotted name is a module or a name in one; others are not of the house."""
    dotted = name.rstrip("/").removesuffix(".py").replace("/", ".")
    package = tree.get(f"{house.ROOT}.{dotted.partition('.')[0]}")
    if "." not in dotted or package is None or not package.is_package:
        return True
    found = _resolved(name, tree) or ""
    rest = f"{house.ROOT}.{dotted}".removeprefix(found).lstrip(".").partition(".")[0]
    return not rest or rest in _defined(tree[found])


def _defined(module: house.Module) -> set[str]:
    """Return the names that a module binds at its top."""
    names: set[str] = set()
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return names


def findings() -> list[Finding]:
    """Find every breach of every rule in the product and its documents."""
    found: list[Finding] = []
    for path, source in sources().items():
        for text in prose(path, source):
            found += retired(text)
        found += bad_names(path, source)
        found += first_lines(functions(path, source))
    for text in (*documents(), *helps()):
        found += retired(text)
    found += heads(house.product())
    return sorted(set(found))


# -- what the command prints


def print_list(wanted: Iterable[str]) -> None:
    """Print the findings below the named folders or files, without or with ``coloctl/``."""
    places = tuple(one.rstrip("/").removeprefix(f"{house.ROOT}/") for one in wanted)

    def is_wanted(path: str) -> bool:
        inner = path.removeprefix(f"{house.ROOT}/")
        return any(inner == one or inner.startswith(f"{one}/") for one in places)

    shown = [one for one in findings() if is_wanted(one.path) or house.ROOT in places]
    for one in shown:
        print(one)
    print(f"{len(shown)} findings")


def print_figures() -> None:
    """Print one line per package, then the retired words of each document."""
    found = findings()
    print("| package | lines | doc / not imp. | starters | public / imp. / none | share |", end="")
    print(" classes / bad | retired |")
    print("|---|---|---|---|---|---|---|---|")
    texts = sources()
    parts = sorted({_part(path) for path in texts})
    for part in (*parts, "all"):
        mine = {path: text for path, text in texts.items() if part in (_part(path), "all")}
        print(_row(part, mine, [one for one in found if one.path in mine]))
    print()
    for path in sorted({text.path for text in documents()}):
        print(f"{path}: {sum(one.path == path for one in found)}")


def _part(path: str) -> str:
    parts = path.split("/")
    return parts[1] if len(parts) > 2 else "(root modules)"


def _row(part: str, texts: Mapping[str, str], found: list[Finding]) -> str:
    each = [one for path, text in texts.items() for one in functions(path, text)]
    plain = [one for one in each if one.kind == "function" and one.doc]
    public = [one for one in each if one.public]
    done = sum(is_imperative(one.doc) for one in public)
    classes = [one for one in each if one.kind == "class" and one.doc]
    loose = sum(not is_imperative(one.doc) for one in plain)
    cells = (
        part,
        f"{sum(text.count(chr(10)) for text in texts.values()):,}",
        f"{len(plain)} / {loose}",
        sum(starts_badly(one.doc) for one in each if one.kind in ("function", "property")),
        f"{len(public)} / {done} / {sum(one.doc is None for one in public)}",
        f"{100 * done // max(1, len(public))} %",
        f"{len(classes)} / {sum(starts_badly(one.doc) for one in classes)}",
        sum(one.rule in RETIRED for one in found),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def print_outline(path: str) -> None:
    """Print what a newcomer sees of a module without its code; see `outline`."""
    print("\n".join(outline(Path(path).read_text())))


def outline(source: str) -> Iterator[str]:
    """Yield a module's docstrings, signatures with decorators, public constants and fields.

    A constant, a field and a member of an enum keeps its ``#:`` comments; a value is cut to one
    line.
    """
    tree = house.parsed(source)
    yield f"{ast.get_docstring(tree) or ''}\n"
    yield from _outlined(tree.body, source.splitlines(), "")


def _outlined(body: list[ast.stmt], lines: list[str], indent: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ""
            yield from (f"{indent}@{ast.unparse(one)}" for one in node.decorator_list)
            yield indent + _signature(node)
            for line in (ast.get_docstring(node) or "").splitlines():
                yield f"{indent}    {line}".rstrip()
            if isinstance(node, ast.ClassDef):
                yield from _outlined(node.body, lines, indent + "    ")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not ast.unparse(names[0]).startswith("_"):
                before = node.lineno - 1
                while lines[before - 1].lstrip().startswith("#:"):
                    before -= 1
                yield from (indent + line.strip() for line in lines[before : node.lineno - 1])
                last = node.end_lineno or node.lineno
                more = " ..." if last > node.lineno else ""
                yield indent + lines[node.lineno - 1].strip() + more


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
        return f"class {node.name}{bases}:"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{word} {node.name}({ast.unparse(node.args)}){result}:"


def main(arguments: list[str]) -> None:
    """Print what the first argument asks for."""
    does: dict[str, Callable[[list[str]], None]] = {
        "--list": print_list,
        "--figures": lambda rest: print_figures(),
        "--outline": lambda rest: print_outline(rest[0]),
    }
    if not arguments or arguments[0] not in does:
        sys.exit(__doc__)
    does[arguments[0]](arguments[1:] or [house.ROOT])


if __name__ == "__main__":
    main(sys.argv[1:])

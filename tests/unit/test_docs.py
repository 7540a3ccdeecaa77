"""What the documents say of tables, modules, keys, verbs and options is what the code has."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from coloctl import errors, pairfile
from coloctl.chaos.checks import CHECKS
from coloctl.chaos.workloads import WORKLOADS
from coloctl.cli.verbs import VERBS, cli
from coloctl.control.commands import COMMANDS
from coloctl.model.pairevent import EVENTS
from coloctl.model.protection import MOVES, Fact, Protection
from coloctl.model.timeline import TIMELINE_STEPS, FailoverStep

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
LIFE = (ROOT / "docs/life-of-a-pair.md").read_text()
QUICKSTART = (ROOT / "docs/quickstart.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def rows(text: str, header: str) -> Iterator[list[str]]:
    """The cells of the table that begins with the line ``header``, without code marks."""
    lines = iter(text.split(f"{header}\n", 1)[1].splitlines())
    assert set(next(lines)) <= set("|- :")
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip().strip("`") for cell in line.strip("|").split("|")]


# -- docs/life-of-a-pair.md


def test_the_table_of_moves_is_the_codes() -> None:
    written = [tuple(cells) for cells in rows(LIFE, "| from | fact | to |")]
    assert len(written) == len(set(written))
    assert {(before, fact): after for before, fact, after in written} == MOVES


def test_the_table_of_states_has_every_state() -> None:
    header = "| state | meaning | QEMU sees: primary | secondary |"
    assert [cells[0] for cells in rows(LIFE, header)] == list(Protection)


def test_every_fact_is_in_some_move() -> None:
    assert {fact for _, fact in MOVES} == set(Fact)


# -- docs/architecture.md


def test_the_tree_has_a_line_for_every_module_and_no_other() -> None:
    tree = ARCHITECTURE.split("```\ncoloctl/\n", 1)[1].split("```", 1)[0]
    written = re.findall(r"^  (\S+\.py)", tree, re.MULTILINE)
    present = {str(file.relative_to(ROOT / "coloctl")) for file in ROOT.glob("coloctl/**/*.py")}
    assert len(written) == len(set(written))
    assert set(written) == present, "give every module its line in docs/architecture.md"


def test_every_error_class_is_explained() -> None:
    for name, value in vars(errors).items():
        is_error = isinstance(value, type) and issubclass(value, errors.ColoctlError)
        parents = value.__mro__[1:] if is_error else ()
        if is_error and value not in (errors.ColoctlError, errors.MonitorError):
            told = {name, *(one.__name__ for one in parents)} - {"ColoctlError", "MonitorError"}
            assert any(f"`{one}`" in ARCHITECTURE for one in told), name


def test_the_commands_and_events_of_the_control_socket_are_named() -> None:
    for name in (*COMMANDS, *EVENTS):
        assert f"`{name}`" in ARCHITECTURE, name


# -- docs/quickstart.md


def keys(node: Mapping[str, Any], whole: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the values of a pair file; an item of a list of tables is ``name[]``."""
    for name, value in node["properties"].items():
        target = _table(value)
        if "$ref" in target:
            item = whole["$defs"][target["$ref"].rpartition("/")[2]]
            yield from keys(item, whole, f"{prefix}{name}{'[]' if 'items' in value else ''}.")
        else:
            yield f"{prefix}{name}"


def test_the_reference_has_every_key_of_a_pair_file_and_no_other() -> None:
    written = [cells[0] for cells in rows(QUICKSTART, "| key | value | default | meaning |")]
    whole = pairfile.json_schema()
    assert len(written) == len(set(written))
    assert set(written) == set(keys(whole, whole))


def _table(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The reference to the table that a value is, or a list of, or may be."""
    return next(iter(value.get("anyOf", ())), value.get("items", value))


def defaults(node: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key with its default as TOML writes it; ``-`` for none, ``required`` where one must."""
    for key in keys(whole, whole):
        here, found, needed = whole, {}, True
        for part in key.split("."):
            name = part.removesuffix("[]")
            found = here["properties"][name]
            needed = name in here.get("required", ())
            target = _table(found)
            if "$ref" in target:
                here = whole["$defs"][target["$ref"].rpartition("/")[2]]
        yield key, "required" if needed else _toml(found.get("default"))


def _toml(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_the_reference_has_the_defaults_of_the_code() -> None:
    table = rows(QUICKSTART, "| key | value | default | meaning |")
    written = {cells[0]: cells[2] for cells in table}
    whole = pairfile.json_schema()
    assert written == dict(defaults(whole, whole))


def test_the_reference_has_every_exit_code() -> None:
    written = {int(cells[0]) for cells in rows(QUICKSTART, "| exit code | meaning |")}
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ColoctlError)
    ]
    assert written == {0, 130, *(one.exit_code for one in classes)}


def test_the_pair_file_of_the_quickstart_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", QUICKSTART, re.MULTILINE | re.DOTALL)
    whole = [block for block in blocks if block.startswith(("name =", "# "))]
    assert whole
    for block in whole:
        pairfile.parse(block, tmp_path)


# -- every document


def commands(text: str, program: str) -> Iterator[str]:
    """What is called in code blocks (a line with or without a prompt) and in code spans."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            called = line.strip().removeprefix("$ ").removeprefix("# ").removeprefix(".venv/bin/")
            if called.startswith(f"{program} "):
                yield called
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        if span.startswith(f"{program} "):
            yield " ".join(span.split())


CALLS = sorted(
    {(file.name, call) for file in DOCUMENTS for call in commands(file.read_text(), "coloctl")}
)


@cache
def command_of(verb: str) -> click.Command | None:
    return cli.get_command(click.Context(cli), verb)


def wrong(call: str) -> str | None:
    """What is wrong with a call of coloctl, or None."""
    first = re.split(r" (?:\||&&|>) ", call, maxsplit=1)[0]
    words = shlex.split(first, comments=True)[1:]
    words = words[: words.index("--")] if "--" in words else words
    if words[0] in ("--help", "-h", "--version"):
        return None
    command: click.Command | None = None
    for verb in words[0].split("/"):
        if verb not in {name for section in VERBS.values() for name in section}:
            return f"there is no verb {verb}"
        command = command_of(verb)
    assert command is not None
    for word in words[1:]:
        if word.startswith("-"):
            known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
            if word.split("=")[0] not in {*known, "--help", "-h"}:
                return f"{command.name} has no option {word}"
        elif isinstance(command, click.Group) and not any(
            isinstance(one, click.Argument) for one in command.params
        ):
            for name in word.split("/"):
                if name not in command.commands:
                    return f"{command.name} has no {name}"
            command = command.commands[name]
    return None


@pytest.mark.parametrize(("document", "call"), CALLS)
def test_a_document_calls_only_what_there_is(document: str, call: str) -> None:
    assert wrong(call) is None


@pytest.mark.parametrize(
    "call",
    ["coloctl dance web", "coloctl status --dance", "coloctl lab dance", "coloctl lab up --dance"],
)
def test_a_call_of_what_there_is_not_would_be_noticed(call: str) -> None:
    assert wrong(call) is not None


def test_the_documents_name_every_verb() -> None:
    text = (ROOT / "README.md").read_text()
    for section in VERBS.values():
        for verb in section:
            assert re.search(rf"`coloctl [a-z/]*\b{verb}\b", text), verb


def test_the_kinds_of_work_are_those_of_the_code() -> None:
    header = "| kind | keys and their defaults | a client acknowledges |"
    text = (ROOT / "docs/workloads.md").read_text()
    written = {kind: keys for kind, keys, _ in rows(text, header)}
    fields = {name: kind.params.model_fields for name, kind in WORKLOADS.items()}
    assert written == {
        name: ", ".join(f"`{key} = {field.default:g}`" for key, field in keys.items()).strip("`")
        for name, keys in fields.items()
    }


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for file in DOCUMENTS:
        for call in commands(file.read_text(), "make"):
            for word in shlex.split(call)[1:]:
                if not word.startswith("-") and "=" not in word:
                    assert word in targets, f"{file.name}: {call}"


def test_every_file_that_a_document_names_exists() -> None:
    folders = ("coloctl", "docs", "tests", "qmp_schemas")
    inside = {name.name for name in (ROOT / "coloctl").iterdir() if name.is_dir()}
    for file in DOCUMENTS:
        for name in re.findall(r"`([\w./-]+/[\w./-]*)`", file.read_text()):
            first = name.split("/")[0]
            place = ROOT if first in folders else ROOT / "coloctl"
            if first in folders or (first in inside and name.endswith((".py", f"{first}/"))):
                assert (place / name).exists(), f"{file.name} names {name}"


def test_every_link_between_documents_leads_somewhere() -> None:
    for file in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


# -- docs/chaos.md: the track record, and commands of other documents


def _tests(path: Path, words: Iterable[str]) -> Iterator[str]:
    """Collect the names by which pytest selects: of the file, its folder, and each test.

    Only files in whose path or text one of the words stands are parsed.
    """
    for file in [path] if path.is_file() else sorted(path.rglob("test_*.py")):
        name, text = str(file.relative_to(ROOT)), file.read_text()
        found = any(word in name or word in text for word in words)
        for node in ast.walk(ast.parse(text if found else "")):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:4] == "test":
                yield f"{name}::{node.name}"


def _selectors(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Find ``pytest PATHS -k "A or B"`` in a document; a row may leave ``pytest`` out."""
    for paths, several, one in re.findall(r'((?:tests/\S+ )+)-k (?:"([^"]+)"|(\w+))', text):
        yield paths.split(), (several or one).split(" or ")


def test_every_selector_of_the_documents_selects_a_test() -> None:
    found = 0
    for file in DOCUMENTS:
        for paths, words in _selectors(file.read_text()):
            names = [name for path in paths for name in _tests(ROOT / path, words)]
            for word in words:
                found += 1
                assert any(word in name for name in names), f"{file.name}: {paths} -k {word}"
    assert found > 20


def test_what_the_track_record_runs_is_there() -> None:
    text = (ROOT / "docs/chaos.md").read_text()
    named = re.findall(r"\b(?:scenarios|tests)/[\w/-]+\.(?:toml|py)\b", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_check_is_explained() -> None:
    text = (ROOT / "docs/chaos.md").read_text()
    explained = [cells[0] for cells in rows(text, "| check | what it proves | from |")]
    assert sorted(explained) == sorted(CHECKS)


def test_the_steps_of_a_failover_are_those_of_the_documents() -> None:
    """The life of a pair explains each, the bench says who measures it."""
    failover = LIFE.split("\n## Failover\n", 1)[1].split("\n## ", 1)[0]
    numbered = re.findall(r"^\d+\. `([a-z-]+)`:", failover, re.MULTILINE)
    beside = {FailoverStep.DETECTED, FailoverStep.FIRST_PACKET, FailoverStep.MERGED}
    assert numbered == [step for step in TIMELINE_STEPS if step not in beside]
    assert all(f"`{step}`" in failover for step in beside)
    bench = (ROOT / "docs/bench.md").read_text()
    measured = {cells[0] for cells in rows(bench, "| phase | meaning | who says so |")}
    late = {FailoverStep.CLEARED, FailoverStep.MERGED, FailoverStep.VERIFIED}  # after what it times
    assert set(TIMELINE_STEPS) - late <= measured


# -- docs/security.md


def _security_rows() -> Iterator[list[str]]:
    """Find the rows of each table whose last column names the tests."""
    text = (ROOT / "docs/security.md").read_text()
    for header in re.findall(r"^\|.*\| tried by \|$", text, re.MULTILINE):
        yield from rows(text, header)


def test_what_the_security_document_promises_is_tried_by_a_test() -> None:
    found = list(_security_rows())
    untried = [cells[0] for cells in found if not re.findall(r"test_\w+", cells[-1])]
    assert untried == ["root of either machine"]  # what it says is that they can
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text()))
    names = {name.rpartition("::")[2] for name in _tests(ROOT / "tests", named)}
    assert named - names == set()
    assert len(found) > 30


def test_a_block_of_two_machines_that_no_lab_can_type_says_so() -> None:
    """`tests/guest/test_two_machines_page.py` types the others; this is known without a lab."""
    page = (ROOT / "docs/two-machines.md").read_text()
    for before, text in re.findall(r"([^\n]*)\n```console\n(.*?)^```", page, re.M | re.S):
        typed = [line[2:] for line in text.splitlines() if line[:2] in ("$ ", "# ")]
        known = all(line.split()[0] in ("coloctl", "ssh", "ip", "export") for line in typed)
        assert known or before.startswith("<!-- not in the lab: "), text

"""The product uses the words of docs/glossary.md, and a docstring begins with what is done.

`tests/support/words.py` collects and measures; ``--list ROOM`` prints what a failure here names.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from support import house, words

pytestmark = pytest.mark.unit

#: Of the public functions, over all rooms, and in each; and of private ones with a docstring.
OVERALL, PER_ROOM, PRIVATE = 0.95, 0.90, 0.90


@cache
def _functions() -> tuple[words.Documented, ...]:
    return tuple(
        one
        for path, text in words.sources().items()
        for one in words.functions(path, text)
        if one.kind == "function"
    )


def _share(functions: list[words.Documented]) -> float:
    return sum(words.is_imperative(one.doc) for one in functions) / len(functions)


@pytest.mark.usefixtures("product")
def test_every_room_is_clean() -> None:
    """No retired word, also in names; no pronoun first; every module head names a caller."""
    measured = {"imperative", "no docstring"}
    found = [one for one in words.findings() if one.rule not in measured]
    assert not found, "\n".join(str(one) for one in found)


@pytest.mark.usefixtures("product")
def test_the_first_line_says_what_a_function_does() -> None:
    public = [one for one in _functions() if one.public]
    assert not public or _share(public) >= OVERALL
    for room in {one.room for one in public}:
        mine = [one for one in public if one.room == room]
        poor = "\n".join(f"{one.path}:{one.line} {one.name}" for one in _poor(mine))
        assert _share(mine) >= PER_ROOM, f"{room}\n{poor}"


@pytest.mark.usefixtures("product")
def test_a_private_function_with_a_docstring_keeps_the_same_rule() -> None:
    private = [one for one in _functions() if not one.public and one.doc]
    for room in {one.room for one in private}:
        mine = [one for one in private if one.room == room]
        poor = "\n".join(f"{one.path}:{one.line} {one.name}" for one in _poor(mine))
        assert _share(mine) >= PRIVATE, f"{room}\n{poor}"


def _poor(functions: list[words.Documented]) -> list[words.Documented]:
    return [one for one in functions if not words.is_imperative(one.doc)]


# -- the rules themselves can fail

#: For each group of retired words a sentence that breaks it and one that does not.
SAMPLES: dict[str, tuple[str, str]] = {
    "pronoun": ("Nobody answers.", "No process answers; one of the nodes is silent."),
    "he": ("The operator and his hosts.", "The operator and the hosts; she, here, this."),
    "told": ("QEMU is told to stop.", "The two cannot be\ntold apart; retold."),
    "behind": ("The link, behind its loss.", "A file is left over and\nbehind; behind the proxy."),
    "lacks": ("What the guest lacks.", "The guest lacks a disk."),
    "road": ("Two roads.", "A broad path; the key `roads` of schema 1."),
    "theatre": ("A scenario is played.", "Display, replay, broadcast, historical."),
    "strike": ("The fault struck.", "The error is dealt\nwith; `struck_s`; ideals; --blow."),
    "court": ("The checker accused a node.", "`none_accused`, x.witness.qcow2, `vouched`."),
    "sit": ("A QEMU sits there.", "It is situated; the site."),
    "house": ("The ledger of checkpoints.", "A heartbeat; impulse; known; however; kind."),
    "word": ("The host's word.", "A word on the command line; the words in argv."),
    "ruin": ("The disk is ruined.", 'ruin_noticed, secondary-ruined, `ruin`, kind = "ruin"'),
    "stage": ("The stage is set up.", "A postage; upstaged."),
    "world": ("It leaves its world.", "A worldly matter."),
}


def _groups(text: str, path: str = "coloctl/chaos/x.py") -> set[str]:
    return {one.rule for one in words.retired(words.Text(path, 1, "comment", text))}


def test_every_group_has_its_samples() -> None:
    assert set(SAMPLES) == set(words.RETIRED)


@pytest.mark.parametrize("group", SAMPLES)
def test_the_pattern_catches_the_bad_and_lets_the_allowed_pass(group: str) -> None:
    bad, fine = SAMPLES[group]
    assert group in _groups(bad)
    assert group not in _groups(fine)


def test_a_stage_is_retired_only_where_faults_are() -> None:
    assert "stage" in _groups("The stage is set up.", "docs/chaos.md")
    assert not _groups("The stage is set up.", "coloctl/qmp/wait.py")


def test_a_finding_has_the_line_of_its_word() -> None:
    text = words.Text("x.py", 10, "docstring", "One.\n\nTwo\nnobody.")
    assert [one.line for one in words.retired(text)] == [13]


def test_a_path_of_a_module_is_no_prose_of_a_document() -> None:
    text = words.without_paths("`cli/world.py` leaves its world.")
    assert len(text) == len("`cli/world.py` leaves its world.")
    assert text.count("world") == 1 and text.endswith(" leaves its world.")


SOURCE = '''"""Stop both nodes."""

# one line of a comment
# and its second line
HINT = f"type {1} to go" + "one" + "two words"  # beside code


class Act:
    """One act."""

    @property
    def name(self) -> str:
        """The name."""
        return ""

    def run(self, victim: int) -> None:
        """Run it."""

        def inner() -> None:
            """Inner text."""

    def __repr__(self) -> str: ...


def _private() -> None: ...


class StruckNode: ...
'''


def test_prose_is_collected_by_kind_with_its_line() -> None:
    texts = {(one.kind, one.text): one.line for one in words.prose("a.py", SOURCE)}
    assert texts["docstring", "Stop both nodes."] == 1
    assert texts["docstring", "Inner text."] == 20
    assert texts["comment", "one line of a comment\nand its second line"] == 3
    assert texts["comment", "beside code"] == 5
    assert texts["message", "type {} to go"] == 5
    assert texts["message", "two words"] == 5
    assert ("message", "one") not in texts


def test_functions_are_collected_with_kind_and_reach() -> None:
    each = {one.name: (one.kind, one.public) for one in words.functions("a.py", SOURCE)}
    assert each == {
        "": ("module", False),
        "Act": ("class", False),
        "name": ("property", False),
        "run": ("function", True),
        "inner": ("function", False),
        "__repr__": ("function", False),
        "_private": ("function", False),
        "StruckNode": ("class", False),
    }


def test_names_of_retired_words_are_found_in_names_and_parameters() -> None:
    found = {(one.line, one.text) for one in words.bad_names("coloctl/ha/roads.py", SOURCE)}
    assert found == {(1, "roads"), (16, "victim"), (28, "StruckNode")}
    assert not list(words.bad_names("coloctl/chaos/checkers/none_accused.py", ""))


@pytest.mark.parametrize(
    ("doc", "imperative"),
    [
        ("Claim the generation.", True),
        ("Return whether it runs.", True),
        ("Count the pages.", True),
        ("See `Host.run`.", True),
        ("Count of pages.", False),
        ("See the other one.", False),
        ("The guest runs alone.", False),
        ("Tell the clients.", False),
        ("Verifies a disk.", False),
        ("", False),
        (None, False),
    ],
)
def test_an_imperative_is_a_verb_of_the_list(doc: str | None, imperative: bool) -> None:
    assert words.is_imperative(doc) is imperative


@pytest.mark.parametrize("doc", ["What it is.", "It's a disk.", "Nothing, yet.", "Whoever asks."])
def test_a_docstring_that_begins_with_a_pronoun_is_found(doc: str) -> None:
    assert words.starts_badly(doc)
    assert not words.starts_badly("Items of a list.")


HEAD = '"""Run the loop.\n\nCalled by `{}` when a pair starts; calls `{}`.\n"""\nimport {}\n'


def _heads(loop: str, **more: str) -> list[str]:
    files = {
        "supervisor/__init__": '"""Supervise."""',
        "supervisor/loop": loop,
        "control/__init__": '"""Control."""',
        "control/serve": '"""Serve a pair with `supervisor/`."""\nimport coloctl.supervisor.loop',
        "qmp/__init__": '"""Talk QMP."""',
        "qmp/wait": '"""Wait; called by `supervisor.loop`."""\ndef until(): ...\n',
        **more,
    }
    tree = house.parse({f"coloctl/{path}.py": text for path, text in files.items()})
    return [one.text for one in words.heads(tree)]


def test_a_head_that_names_caller_and_callee_is_sound() -> None:
    assert not _heads(HEAD.format("control.serve", "qmp.wait.until", "coloctl.qmp.wait"))
    assert not _heads(HEAD.format("control/", "qmp/", "coloctl.qmp.wait"))


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (HEAD.format("qmp.wait", "qmp.wait", "coloctl.qmp.wait"), "names no caller"),
        (
            HEAD.format("control.serve", "control.serve", "coloctl.qmp.wait"),
            "nothing that it calls",
        ),
        (HEAD.format("control.serve", "qmp.wait.ever", "coloctl.qmp.wait"), "does not exist"),
        (HEAD.format("control.gone", "qmp.wait", "coloctl.qmp.wait"), "does not exist"),
        ('"""Run the loop of `control.serve`, ' + "long " * 20 + '."""', "characters"),
        ('"""Run the loop of `control.serve`"""', "no full stop"),
    ],
)
def test_a_head_that_rots_is_found(head: str, complaint: str) -> None:
    assert any(complaint in text for text in _heads(head))


OUTLINED = """\"\"\"Count.\"\"\"
import enum
#: Longest wait,
#: seconds.
WAIT_S = 1.0
_OWN = 2
TABLE = {
    1: 2,
}

@dataclass(frozen=True)
class Act:
    \"\"\"One act.\"\"\"

    kind: str = "stop"  #: the verb
    _cache: int = 0

    @property
    def name(self) -> str:
        \"\"\"The name.\"\"\"
        local = 1
        return ""
"""


def test_an_outline_shows_all_but_the_code() -> None:
    assert list(words.outline(OUTLINED)) == [
        "Count.\n", "#: Longest wait,", "#: seconds.", "WAIT_S = 1.0", "TABLE = { ...", "",
        "@dataclass(frozen=True)", "class Act:", "    One act.",
        '    kind: str = "stop"  #: the verb', "", "    @property",
        "    def name(self) -> str:", "        The name.",
    ]  # fmt: skip


USING = "from coloctl.supervisor.loop import Loop, run, WAIT_S\n"


@pytest.mark.parametrize(
    ("text", "is_caller"),
    [
        ("run()", True),
        ("value = Loop()", True),
        ("print(WAIT_S)", False),
        ("def serve(loop: Loop) -> Loop: ...", False),
        ("from coloctl.supervisor import loop\nloop.run()", True),
        ("from coloctl.supervisor import loop\nprint(loop.WAIT_S)", False),
    ],
)
def test_a_head_names_every_caller_where_they_are_few(text: str, is_caller: bool) -> None:
    """A module that takes a type or a constant alone is no caller."""
    serving = f'"""Run `supervisor/`."""\n{USING}{text}'
    found = _heads(HEAD.format("control.serve", "qmp/", "coloctl.qmp.wait"), **{"api/x": serving})
    assert any("its caller api.x" in one for one in found) is is_caller


def test_the_glossary_is_a_table_of_words_with_one_sentence_each() -> None:
    lines = (Path(words.TOP) / words.EXEMPT).read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.count("|") == 4]
    defined = [cells[1].strip() for cells in rows if cells[0].strip() not in ("word", "---")]
    assert len(defined) > 40
    assert all(text.endswith(".") and ". " not in text for text in defined)

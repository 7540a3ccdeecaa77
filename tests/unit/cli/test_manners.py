"""How verbs behave: exit codes, errors for people and scripts, asking again."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from support.views import FROZEN, LOST, PROTECTED, document, looked

from coloctl.cli import complaint, options, verbs
from coloctl.cli.reach import Looked
from coloctl.cli.verbs import VERBS, run_verb, status, wait
from coloctl.cli.views import plain
from coloctl.control.acts import Acts
from coloctl.control.client import ControlEvent
from coloctl.errors import (
    ColoctlError,
    DeadlineMissed,
    FencingFailed,
    NoSuchPair,
    NotConfirmed,
    UsageError,
)
from coloctl.model.observation import Diagnosis
from coloctl.model.protection import Protection

pytestmark = pytest.mark.unit

NAMES = [name for section in VERBS.values() for name in section]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def error(monkeypatch: pytest.MonkeyPatch) -> ColoctlError:
    """What `coloctl status` runs into."""
    failure = FencingFailed("a", "Node a does not die.", hint="power it off")

    def fail(_pair: str) -> Any:
        raise failure

    monkeypatch.setattr(status.reach, "acts", fail)
    return failure


def test_an_error_is_one_sentence_and_a_hint_on_standard_error(
    error: ColoctlError, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(["status", "web"]) == 7
    assert capsys.readouterr() == ("", "error: Node a does not die.\nhint: power it off\n")


def test_an_error_as_json(error: ColoctlError, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["status", "web", "-f", "json"]) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "error": {
            "code": "fencing-failed",
            "message": "Node a does not die.",
            "hint": "power it off",
        }
    }


@pytest.mark.parametrize(
    ("arguments", "json_wanted"),
    [
        (["status", "-f", "json"], True),
        (["status", "-fjson"], True),
        (["nonsense", "--format=json"], True),
        (["list", "--format", "json"], True),
        (["status", "-f", "tsv"], False),
        (["qmp", "web", "a", "--", "x", "-f", "json"], False),
        ([], False),
    ],
)
def test_json_is_recognised_in_any_command_line(arguments: list[str], json_wanted: bool) -> None:
    assert complaint.wants_json(arguments) is json_wanted


def test_colour_only_marks_the_words_in_front() -> None:
    error = UsageError("No.", hint="Yes.")
    assert complaint.lines(error, as_json=False, colour=True) == [
        "\x1b[1;31merror:\x1b[0m No.",
        "\x1b[36mhint:\x1b[0m Yes.",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["start"],
        ["wait", "web"],
        ["wait", "web", "--for", "heaven"],
        ["set", "web", "checkpoint-delay"],
        ["set", "web", "compare-timeout=5", "compare-timeout=6"],
        ["qmp", "web", "a", "--", "query-status", "novalue"],
        ["qmp", "web", "c", "--", "query-status"],
        ["status", "-w", "0"],
        ["stop", "web", "--wait=soon"],
        ["start", "/nowhere/web.toml"],
    ],
)
def test_usage_errors(
    arguments: list[str], state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("error: ") and lines[0].endswith(".")
    assert len(lines) == 2 and lines[1].startswith("hint: ")


@pytest.mark.parametrize("verb", ["status", "stop", "failover", "checkpoint", "query"])
@pytest.mark.parametrize("name", ["web", "../web", "web/../../etc", ".", "web.toml"])
def test_no_such_pair(
    verb: str, name: str, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["is-state", "colo"] if verb == "query" else []
    assert run_verb([verb, name, *more]) == 4
    assert capsys.readouterr().err.startswith("error: ")


def test_nothing_runs_here(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["list"]) == run_verb(["status"]) == 0
    assert capsys.readouterr().out == "No pair runs here.\n" * 2
    assert run_verb(["list", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "pairs": [], "given_up": {}}


def test_a_folder_without_a_supervisor_is_listed_as_gone(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (state_dir / "web").mkdir()
    (state_dir / ".web.1").mkdir()
    (state_dir / "lab-demo.json").touch()
    assert run_verb(["list", "-f", "tsv"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split("\t") == list(plain.LIST_COLUMNS)
    assert [row.split("\t")[:2] for row in rows] == [["web", "gone"]]


def test_interrupting_gives_one_clean_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_pair: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(status.reach, "acts", interrupt)
    assert run_verb(["status", "web"]) == 130
    assert capsys.readouterr() == ("", "Interrupted.\n")


def test_an_interrupt_tells_what_becomes_of_the_act() -> None:
    interrupted = pytest.raises(complaint.Interrupted, match="It goes on")
    with interrupted, complaint.on_interrupt("It goes on."):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("views", "code"),
    [
        ([looked()], 0),
        ([looked(FROZEN)], 0),
        ([looked(LOST)], 3),
        ([looked(), looked(None, name="db", supervisor="gone", error="gone")], 3),
    ],
)
def test_status_says_by_its_exit_code_whether_all_is_protected(
    views: list[Looked], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status.reach, "survey", lambda: views)
    for form in ("pretty", "json", "tsv"):
        assert run_verb(["status", "-f", form]) == code


def test_one_pair_as_json_is_its_view_and_all_of_them_a_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status.reach, "survey", lambda: [looked()])
    supervisor = contextlib.nullcontext(SimpleNamespace(pair="web", status_document=document))
    monkeypatch.setattr(status.reach, "acts", lambda _pair: supervisor)
    run_verb(["status", "web", "-f", "json"])
    one = json.loads(capsys.readouterr().out)
    run_verb(["status", "-f", "json"])
    many = json.loads(capsys.readouterr().out)
    assert one["schema"] == many["schema"] == 1
    assert one["name"] == "web" and [node["name"] for node in one["nodes"]] == ["a", "b"]
    assert [pair["view"] for pair in many["pairs"]] == [one]


def test_a_supervisor_of_another_version_does_not_hide_the_other_pairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: one status that this version cannot read is named, and no other pair suffers."""
    newer = {**json.loads(json.dumps(document())), "name": "db", "diagnosis": "comet"}
    supervisor = SimpleNamespace(pair="db", status_document=lambda: newer)
    monkeypatch.setattr(status.reach, "acts", lambda _pair: contextlib.nullcontext(supervisor))
    found = status.reach.ask("db")
    sentence = "The status of db cannot be read: diagnosis is 'comet', which this coloctl"
    assert found.view is None and found.error is not None and found.error.startswith(sentence)
    assert run_verb(["status", "db", "-f", "json"]) == 3
    assert json.loads(capsys.readouterr().out) == newer
    monkeypatch.setattr(status.reach, "survey", lambda: [looked(), found])
    for verb in ("status", "list"):
        run_verb([verb])
        out = " ".join(capsys.readouterr().out.split())
        assert "web" in out and "The status of db" in out


def test_tab_separated_rows_have_every_column() -> None:
    for view in (PROTECTED, LOST, FROZEN):
        for row in plain.tsv_rows(view):
            assert len(row) == len(plain.TSV_COLUMNS)
    row = dict(zip(plain.TSV_COLUMNS, plain.tsv_rows(FROZEN)[0], strict=True))
    assert row["state"] == "not answering"
    assert (row["checkpoints"], row["pause_p50_ms"]) == (187, 11.2)
    assert plain.tsv([["a\tb\nc", None, 1]]) == "a b c\t\t1"


class TestConfirmation:
    def test_without_a_terminal_it_needs_yes(self) -> None:
        with pytest.raises(UsageError, match="needs --yes"):
            options.confirm("web", "This ends web.", yes=False)

    def test_yes_asks_nobody(self) -> None:
        options.confirm("web", "This ends web.", yes=True)

    @pytest.mark.parametrize("typed", ["wob", "", "y", "web2"])
    def test_only_the_name_will_do(self, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_a_terminal(monkeypatch, typed)
        with pytest.raises(NotConfirmed, match="nothing was done"):
            options.confirm("web", "This ends web.", yes=False)

    def test_the_name_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_a_terminal(monkeypatch, " web ")
        options.confirm("web", "This ends web.", yes=False)

    def at_a_terminal(self, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        monkeypatch.setattr(click, "prompt", lambda *_, **__: typed)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("500ms", 0.5), ("1h", 3600)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert options.Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "1d", "", "1 s"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["web.toml"], ("web.toml", 7.0)),
        (["--wait", "web.toml"], ("web.toml", 120.0)),
        (["web.toml", "--wait"], ("web.toml", 120.0)),
        (["--wait=2m", "web.toml"], ("web.toml", 120.0)),
        (["--wait=3", "web.toml"], ("web.toml", 3.0)),
        (["--", "--wait"], ("--wait", 7.0)),
    ],
)
def test_wait_without_a_value_eats_no_argument(
    arguments: list[str], found: tuple[str, float]
) -> None:
    @click.command(cls=options.WaitingCommand)
    @click.argument("spec")
    @click.option("--wait", type=options.Duration(), default=7.0)
    def verb(spec: str, wait: float) -> tuple[str, float]:
        return spec, wait

    assert verb.main(arguments, standalone_mode=False) == found


class FakeClient:
    """Is in the states of ``story``, one after the other; "?" precedes a doubt of one."""

    pair = "web"

    def __init__(self, *story: str) -> None:
        self.story = list(story)

    def execute(self, name: str, timeout_s: float) -> dict[str, Any]:
        protection, _, doubt = self.story[0].partition("?")
        view = replace(PROTECTED, protection=Protection(protection), generation=1, waiting=doubt)
        return document(view)

    def events(self, timeout_s: float) -> Any:
        while len(self.story) > 1:
            before, after = (state.partition("?")[0] for state in self.story[:2])
            del self.story[0]
            yield ControlEvent("CHECKPOINT", {}, 0.0)
            if before != after:
                yield ControlEvent("STATE_CHANGED", {"before": before, "after": after}, 0.0)


@pytest.mark.parametrize(
    ("story", "found"),
    [
        (["colo"], "colo"),
        (["down", "migrating", "colo", "failover"], "colo"),
        (["down", "migrating"], "migrating"),
        (["colo?Node b is silent.", "colo"], "colo"),
        (["colo?Node b is silent.", "failover", "unprotected"], "unprotected"),
        (["migrating", "colo?Node b is silent.", "unprotected", "colo", "failover"], "colo"),
    ],
)
def test_waiting_ends_in_the_state_or_tells_which_it_is(story: list[str], found: str) -> None:
    client: Any = FakeClient(*story)
    assert Acts(client)._until("colo", 1e12, 0) == (found, "")


def test_a_state_that_is_over_at_once_was_reached() -> None:
    client: Any = FakeClient("colo", "failover", "unprotected")
    assert Acts(client)._until("failover", 1e12, 0) == ("failover", "")


def test_protection_in_doubt_is_not_what_is_waited_for() -> None:
    """Example: the secondary's machine was switched off, and the primary's is out of reach."""
    client: Any = FakeClient("colo?Node b is lost, and nothing is known of node a.")
    with pytest.raises(DeadlineMissed, match="web is colo, but a node that seems to be lost"):
        Acts(client).wait_for("colo", 1e12)
    unknown = replace(PROTECTED, diagnosis=Diagnosis.UNKNOWN)
    assert unknown.doubt and not replace(unknown, protection=Protection.DOWN).doubt


def test_a_state_that_does_not_come_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = FakeClient("down", "resync")
    monkeypatch.setattr(wait.reach, "connect", lambda _pair: contextlib.nullcontext(client))
    with pytest.raises(DeadlineMissed, match="resync and not colo") as caught:
        verbs.cli.main(["wait", "web", "--for", "colo"], standalone_mode=False)
    assert caught.value.exit_code == 6


def test_every_verb_of_pairs_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in NAMES:
        assert f"\n  {name} " in listed
    for name in (*VERBS["Pairs"], *VERBS["Inspect"]):
        assert run_verb([name, "--help"]) == 0
        assert "Usage: coloctl" in capsys.readouterr().out


def test_a_verb_that_is_not_installed_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verbs.VERBS["Pairs"], "fly", verbs.Verb("wings", "Take off."))  # type: ignore[index]
    with pytest.raises(UsageError, match="no verb 'fly'"):
        verbs.cli.main(["fly"], standalone_mode=False)


def test_names_of_pairs_are_completed(state_dir: Path) -> None:
    for name in ("web", "db", "weather"):
        (state_dir / name).mkdir()
    context: Any = None
    found = options.PairName().shell_complete(context, context, "we")
    assert [item.value for item in found] == ["weather", "web"]


def test_a_name_with_a_slash_is_no_pair() -> None:
    with pytest.raises(NoSuchPair):
        options.PairName().convert("../etc", None, None)

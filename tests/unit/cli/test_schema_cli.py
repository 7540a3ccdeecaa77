"""`coloctl schema` on stored schemas: verdicts, differences, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coloctl import paths
from coloctl.cli.verbs import run_verb
from coloctl.qmp import schema as schemas
from coloctl.qmp.schema import Schema

pytestmark = pytest.mark.unit

Output = pytest.CaptureFixture[str]

NEED = "x-colo-lost-heartbeat"


@pytest.fixture
def poor(tmp_path: Path) -> Path:
    """A stored schema of a QEMU that cannot cancel a migration."""
    whole = schemas.load(paths.data_dir("qmp_schemas") / "qemu-11.1.json")
    left = {path: kind for path, kind in whole.paths.items() if path != NEED}
    file = tmp_path / "poor.json"
    file.write_text(schemas.text(Schema("1.2.3", left)))
    return file


def test_the_stored_schemas_have_all_that_is_needed(capsys: Output) -> None:
    assert run_verb(["schema", "check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1].rpartition(".")[0] for line in lines] == ["7.2", "10.0", "11.1"]
    assert all("has all" in line for line in lines)


def test_what_is_missing_is_said_with_its_reason(poor: Path, capsys: Output) -> None:
    assert run_verb(["schema", "check", "11.1", str(poor)]) == 1
    said = capsys.readouterr().out
    assert "QEMU 1.2.3 lacks 1 of" in said
    assert NEED in said and "The failover itself" in said


def test_the_verdict_is_a_document_too(poor: Path, capsys: Output) -> None:
    assert run_verb(["schema", "check", "-f", "json", "7.2", str(poor)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["complete"]) == (1, False)
    whole, lacking = document["checked"]
    assert whole["complete"] and not whole["missing"]
    assert [need["any"] for need in lacking["missing"]] == [[NEED]]
    assert lacking["missing"][0]["why"]


def test_alternatives_are_joined_by_or(tmp_path: Path, capsys: Output) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text(schemas.text(Schema("0", {})))
    assert run_verb(["schema", "check", str(empty)]) == 1
    needs = schemas.load_required(paths.data_dir("qmp_schemas") / "required.toml")
    said = capsys.readouterr().out
    assert f"lacks {len(needs)} of {len(needs)}" in said
    either = next(need for need in needs if len(need.any_of) > 1)
    assert " or ".join(either.any_of) in said


def test_differences_are_gone_come_or_different(poor: Path, capsys: Output) -> None:
    assert run_verb(["schema", "diff", "11.1", str(poor)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("--- QEMU 11.1") and lines[1] == "+++ QEMU 1.2.3"
    assert [line.partition(":")[0] for line in lines[2:]] == [f"- {NEED}"]
    assert run_verb(["schema", "diff", "11.1", "11.1"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["Nothing differs."]


def test_differences_are_a_document_too(capsys: Output) -> None:
    assert run_verb(["schema", "diff", "7.2", "11.1", "-f", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    changes = {change["path"]: change for change in document["changes"]}
    reconnect = changes["chardev-add.backend[type=socket].data.reconnect"]
    assert (reconnect["change"], reconnect["new"]) == ("gone", None)
    for change in changes.values():
        missing = {"gone": (False, True), "come": (True, False), "different": (False, False)}
        assert (change["old"] is None, change["new"] is None) == missing[change["change"]]


def test_the_control_sockets_schema_is_the_stored_one(tmp_path: Path, capsys: Output) -> None:
    assert run_verb(["schema", "dump", "--control"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(
        (paths.data_dir("qmp_schemas") / "coloctl.json").read_text()
    )
    assert run_verb(["schema", "dump", "--control", "--output", str(tmp_path / "c.json")]) == 0
    assert (tmp_path / "c.json").read_text() == printed
    assert [file.name for file in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "no-such-schema"], 2),
        (["check", "broken.json"], 2),
        (["check", "folder"], 2),
        (["check", "program"], 1),
        (["dump", "--qemu", "program"], 1),
        (["dump", "--qemu", "broken.json"], 2),
        (["dump", "--control", "--qemu", "7.2"], 2),
        (["dump", "--control", "--output", "no/folder/x.json"], 2),
        (["diff", "7.2"], 2),
    ],
)
def test_what_is_no_schema_is_one_sentence(
    arguments: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "program").write_text("#!/bin/sh\necho I am no QEMU >&2\n")
    (tmp_path / "program").chmod(0o755)
    assert run_verb(["schema", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error:") == 1 and "Traceback" not in captured.err

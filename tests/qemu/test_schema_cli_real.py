"""`coloctl schema` on real binaries: the stored schemas are what they say now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coloctl import paths
from coloctl.cli.verbs import run_verb
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

Output = pytest.CaptureFixture[str]


def test_a_dump_is_the_stored_schema(qemu_build: qemu.Build, tmp_path: Path) -> None:
    dumped = tmp_path / "dump.json"
    assert run_verb(["schema", "dump", "--qemu", qemu_build.name, "--output", str(dumped)]) == 0
    stored = paths.data_dir("qmp_schemas") / f"qemu-{qemu_build.name}.json"
    assert dumped.read_text() == stored.read_text(), f"coloctl schema dump --output {stored}"


def test_a_binary_is_checked_by_path_and_by_name(qemu_build: qemu.Build, capsys: Output) -> None:
    arguments = [str(qemu_build.binary), "--qemu", qemu_build.name]
    assert run_verb(["schema", "check", "-f", "json", *arguments]) == 0
    by_path, by_name = json.loads(capsys.readouterr().out)["checked"]
    assert by_path == by_name and by_path["complete"]
    assert by_path["qemu"].startswith(qemu_build.version)


def test_a_binary_does_not_differ_from_what_is_stored(
    qemu_build: qemu.Build, capsys: Output
) -> None:
    assert run_verb(["schema", "diff", qemu_build.name, str(qemu_build.binary), "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == []

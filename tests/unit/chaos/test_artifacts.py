"""The artifact folder: everything that can be had, and a word on what cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import runs

from coloctl.chaos import report
from coloctl.chaos.run import artifacts
from coloctl.chaos.run.artifacts import Artifacts
from coloctl.chaos.run.site import LabSite
from coloctl.chaos.workloads import history
from coloctl.errors import Unreachable
from coloctl.lab.network import Lab

SITE = LabSite(Lab("artifacts"))


def say(name: str, timeout_s: float, /, **arguments: Any) -> Any:
    assert name == "query-recording"
    if arguments["node"] == "b":
        raise Unreachable("Node b has no QEMU.")
    return [{"at_s": 1.0, "what": "sent", "message": {"execute": "stop"}}]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "state" / "web"
    (folder / "a").mkdir(parents=True)
    (folder / "supervisor.log").write_text("hello\n")
    (folder / "a" / "qemu.log").write_text("qemu: bye\n")
    return "web"


def test_everything_is_there_or_said_to_be_missing(tmp_path: Path, pair: str) -> None:
    kept = Artifacts(artifacts.fresh(tmp_path / "out", "kill", 7))
    kept.keep_pair(pair, SITE, say)
    scenario = tmp_path / "kill.toml"
    scenario.write_text('title = "kill"\n')
    outcome = runs.outcome()
    kept.finish(outcome, scenario)
    there = {str(file.relative_to(kept.folder)) for file in kept.folder.rglob("*.*")}
    assert there == {
        "outcome.json", "report.html", "scenario.toml", "pair.toml", "events.jsonl",
        "journal.jsonl", "lan.jsonl", "history/appends.jsonl", "history/slow.jsonl",
        "supervisor.log", "a/qemu.log", "a/qmp.jsonl", "missing.json",
    }  # fmt: skip
    missing = json.loads((kept.folder / "missing.json").read_text())
    assert set(missing) == {"a/console.log", "b/qemu.log", "b/console.log", "b/qmp.jsonl"}
    assert missing["b/qmp.jsonl"] == "Node b has no QEMU."
    assert json.loads((kept.folder / "outcome.json").read_text()) == outcome.to_json()
    work = outcome.evidence.works["slow"]
    lines = (kept.folder / "history" / "slow.jsonl").read_text().splitlines()
    assert list(history.parse(lines)) == list(work.history)


def test_runs_of_the_same_seed_get_folders_of_their_own(tmp_path: Path) -> None:
    names = [artifacts.fresh(tmp_path, "kill", 7).name for _ in range(3)]
    assert names == ["kill-7", "kill-7-2", "kill-7-3"]


def test_a_page_that_cannot_be_drawn_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_outcome: object) -> str:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(report, "page", broken)
    kept = Artifacts(tmp_path)
    kept.finish(runs.outcome())
    assert (tmp_path / "outcome.json").exists()
    assert kept.missing["report.html"] == "ZeroDivisionError: oh"


def test_a_folder_that_cannot_be_written_fails_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Artifacts(tmp_path / "file")
    kept.keep_pair("nobody", SITE, None)
    kept.finish(runs.outcome())
    assert "outcome.json" in kept.missing

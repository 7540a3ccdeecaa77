"""The verb `chaos`, as far as nothing is played."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import runs

from coloctl.cli.verbs import run_verb
from coloctl.cli.views import chaos as chaos_views
from coloctl.cli.views import render

ROOT = Path(__file__).parents[3]
WRONG = 'title = "x"\nwhy = "y"\n[[workload]]\nkind = "redis-append"\n[expect]\nno_lost_ack = {}\n'


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run_verb(["chaos", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_list_tells_each_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "list", str(ROOT / "scenarios"), "-f", "json")
    found = json.loads(out)["scenarios"]
    assert code == 0 and len(found) >= 24
    (one,) = (story for story in found if story["name"] == "link-cut")
    assert one["faults"] == ["cut"] and "one_primary" in one["expect"] and one["why"]
    _, pretty, _ = said(capsys, "list", str(ROOT / "scenarios" / "link-cut.toml"))
    assert "link-cut" in pretty and "1 scenario." in pretty


def test_scenarios_are_chosen_by_the_kinds_of_their_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = said(capsys, "list", str(ROOT / "scenarios"), "-f", "json")
    whole = {one["name"]: set(one["faults"]) for one in json.loads(out)["scenarios"]}
    kinds = {"kill", "freeze"}
    _, out, _ = said(
        capsys, "list", str(ROOT / "scenarios"), "--faults", ",".join(kinds), "-f", "json"
    )
    chosen = {one["name"] for one in json.loads(out)["scenarios"]}
    assert chosen == {name for name, faults in whole.items() if faults and faults <= kinds}
    assert {"primary-killed", "secondary-frozen"} <= chosen
    assert "soak" not in chosen and "link-cut" not in chosen


def test_list_tells_every_kind_with_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "list", "--kinds", "-f", "json")
    document = json.loads(out)
    (kill,) = (one for one in document["faults"] if one["kind"] == "kill")
    assert "primary" in kill["targets"]
    (appends,) = (one for one in document["workloads"] if one["kind"] == "redis-appends")
    assert appends["keys"]["pause_ms"] == 2
    (outage,) = (one for one in document["checks"] if one["check"] == "outage_within")
    assert outage["keys"]["ms"] is None
    _, pretty, _ = said(capsys, "list", "--kinds")
    assert "Faults" in pretty and "redis-transfers" in pretty and "bank_sum" in pretty


def test_check_tells_everything_that_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text(WRONG)
    code, out, _ = said(capsys, "check", str(tmp_path), "-f", "json")
    document = json.loads(out)
    assert code == 2 and document["files"] == 1
    assert [one["hint"] for one in document["problems"]] == [
        "did you mean redis-appends?", "did you mean no_lost_acks?",
    ]  # fmt: skip
    code, out, _ = said(capsys, "check", str(tmp_path))
    assert code == 2 and "2 problems in 1 scenario." in out
    code, out, _ = said(capsys, "check", str(ROOT / "scenarios"))
    assert code == 0 and "nothing wrong" in out


def test_check_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "check", "--schema")
    assert code == 0 and json.loads(out)["$schema"].startswith("https://json-schema.org")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "none.toml"], "none.toml: The file cannot be read"),
        (["run", "ONE", "ONE", "--report", "x.html"], "--report is a page about one run"),
        (["run", "ONE", "--repeat", "2", "--keep"], "--keep keeps one pair"),
        (["run", "ONE", "--capture"], "--capture needs a place for the packets."),
        (["run", "EMPTY"], "There is no scenario in"),
        (["run", "ONE", "--faults", "kil"], "There is no fault 'kil'."),
        (["run", "ONE", "--faults", "flap,loss"], "No scenario injects faults of flap,loss alone."),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_played(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"ONE": str(ROOT / "scenarios" / "link-cut.toml"), "EMPTY": "empty"}
    code, _, err = said(capsys, *(places.get(word, word) for word in words))
    assert code == 2 and sentence in err and "Traceback" not in err


def test_runs_are_drawn_with_what_they_are_worth(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"schema": 1, "runs": [runs.outcome().to_json()]}
    render.console().print(chaos_views.runs(document))
    text = capsys.readouterr().out
    assert "1 valid." in text and "operations acknowledged." in text

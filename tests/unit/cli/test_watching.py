"""events, history, explain, fence and bundle: what they print, and what they make of a bad day."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coloctl.cli import bundling
from coloctl.cli.verbs import events, explain, fence, history, run_verb
from coloctl.cli.views import plain
from coloctl.control.client import ControlEvent
from coloctl.errors import NoSuchPair, Unreachable
from coloctl.model.explanation import Explanation
from coloctl.model.protection import Protection
from coloctl.model.strangers import TurnedAway
from coloctl.model.timeline import Timeline
from coloctl.model.view import SettingView

pytestmark = pytest.mark.unit

PAST = {
    "generation": 3,
    "cause": "primary-frozen",
    "survivor": "b",
    "lost": "a",
    "role_before": "secondary",
    "at": "2026-11-21T03:02:01.000+00:00",
    "fault_ms": -131.0,
    "steps": {"detected": 0.0, "fenced": 4.0, "running": 9.5},
    "fence": {"node": "a", "method": "kill", "how": "reaped", "ms": 3.2, "pid": 7},
}
FAILED = {
    "generation": 4,
    "survivor": "a",
    "lost": "b",
    "at": "nonsense",
    "steps": {},
    "failed": "Node b does not die.",
    "fence": {"node": "b", "method": "command", "failed": "Node b does not die."},
}


class Supervisor:
    """A control client: ``seen`` are the events behind a dump that ended with number 5."""

    def __init__(self, *seen: ControlEvent) -> None:
        self.seen = seen

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def execute(self, name: str, _timeout_s: float) -> Any:
        assert name == "query-dump"
        return {"seq": 5, "records": [{"exists": "checkpoints", "count": 2, "delay_ms": 200,
                                       "last_pause_ms": None}]}  # fmt: skip

    def events(self) -> Iterator[ControlEvent]:
        yield from self.seen
        raise Unreachable("The supervisor of web closed the connection.")


def step(seq: int) -> ControlEvent:
    return ControlEvent("STEP", {"act": "start", "step": f"number {seq}"}, 0.0, seq)


@pytest.fixture
def follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Follows what a supervisor says; answers exit code, JSON lines, and the error's message."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))

    def followed(*seen: ControlEvent) -> tuple[int, list[dict[str, Any]], str]:
        monkeypatch.setattr(events.reach, "connect", lambda _pair: Supervisor(*seen))
        code = run_verb(["events", "web", "--follow", "-f", "json"])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return followed


def test_dump_and_stream_meet_without_a_gap_and_without_a_double(follow: Any) -> None:
    code, lines, err = follow(step(4), step(5), step(6), step(7))
    assert (code, err) == (0, "")
    assert lines[0]["exists"] == "checkpoints"
    assert lines[1] == {"schema": 2, "end-of-dump": True, "seq": 5}
    assert [line["seq"] for line in lines[2:]] == [6, 7]


def test_a_gap_in_the_stream_is_never_passed_over(follow: Any) -> None:
    code, lines, err = follow(step(6), step(9))
    assert code == 1
    assert [line["seq"] for line in lines[2:]] == [6]
    assert "2 events are missing" in err


def test_a_reader_that_was_left_behind_is_told(follow: Any) -> None:
    dropped = ControlEvent("CLIENT_DROPPED", {"reason": "It left 1000 messages unread."}, 0.0)
    code, _, err = follow(step(6), dropped)
    assert code == 1
    assert "It left 1000 messages unread." in err and "begins again" in err


def test_a_supervisor_that_vanishes_is_an_error_and_a_pair_that_was_stopped_is_none(
    follow: Any, tmp_path: Path
) -> None:
    assert follow(step(6))[0] == 0
    (tmp_path / "web").mkdir()
    assert follow(step(6))[0] == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("NODE_EVENT", {"node": "a", "event": "STOP", "data": {}, "timestamp": 1.5},
         "node a: STOP"),
        ("NODE_EVENT", {"node": "a", "event": "X", "data": {"y": 1}, "timestamp": 1.5},
         'node a: X {"y": 1}'),
        ("CHECKPOINT", {"node": "a", "phase": "end", "count": 3, "pause_ms": 9.5},
         "checkpoint 3 of node a: end, the guest paused for 9.5 ms"),
        ("PAUSE_CHANGED", {"paused": True}, "paused"),
        ("FAILED_OVER", {"timeline": PAST}, "failed over from node a to node b"),
        ("NEWS", {"x": 1}, 'NEWS {"x": 1}'),
    ],
)  # fmt: skip
def test_events_in_words(name: str, data: dict[str, Any], words: str) -> None:
    assert events.in_words({"event": name, "data": data}) == words


def test_the_history_lists_what_succeeded_and_what_did_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"failovers": [PAST, FAILED], "unreadable": 1}
    supervisor = contextlib.nullcontext(SimpleNamespace(history_document=lambda: answer))
    monkeypatch.setattr(history.reach, "acts", lambda _pair: supervisor)
    assert run_verb(["history", "web", "-e"]) == 0
    out = capsys.readouterr().out
    assert "primary-frozen  a -> b  -131.0 ms   9.5 ms" in out
    assert "generation 4, -: Node b does not die." in out
    assert "fenced    4.0 ms" in out
    assert "1 damaged lines were passed over." in out
    assert max(map(len, out.splitlines())) <= 80

    assert run_verb(["fence", "history", "web", "-f", "json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["fences"]
    assert (first["node"], first["fenced"], first["result"]) == ("a", True, "reaped")
    assert (second["node"], second["fenced"]) == ("b", False)
    assert fence._fences([Timeline("b", "a")]) == []


def test_the_history_of_a_pair_without_a_supervisor_is_read_from_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    with pytest.raises(NoSuchPair):
        history.past_of("web")
    (tmp_path / "web").mkdir()
    assert history.past_of("web") == {"failovers": [], "unreadable": 0}
    (tmp_path / "web/history.jsonl").write_text(json.dumps(PAST) + "\n")
    assert history.past_of("web") == {"failovers": [PAST], "unreadable": 0}


def test_an_explanation_says_who_would_act() -> None:
    said = Explanation(
        "web", Protection.COLO, "All is well", since_s=5.0, exposed_s=None, generation=2,
        paused=False, auto_failover=True, fencing="kill", acting="",
    )  # fmt: skip
    assert list(explain.sentences(said)) == [
        "web is colo for 00:00:05, generation 2, because: All is well.",
        "Nothing was observed yet.",
        "It fails over by itself; a lost node is fenced by 'kill'.",
    ]
    for changed, words in (
        (replace(said, paused=True), "paused"),
        (replace(said, auto_failover=False), "auto_failover is false"),
        (replace(said, acting="start"), "'start' is under way"),
    ):
        assert words in list(explain.sentences(changed))[-1]
    away = TurnedAway(1, {"the disks": 1}, since_s=20.0, last="It was uid 7.")
    assert list(explain.sentences(replace(said, turned_away=away)))[2] == (
        "1 stranger was cut off from the pair's wires (the disks: 1), first 1 min ago. "
        "It was uid 7."
    )
    lost = replace(said, left=("One was left.",), given_up="Another was given up.")
    assert list(explain.sentences(lost))[2:4] == ["One was left.", "Another was given up."]
    settings = {"compare-timeout": SettingView(500, 300)}
    tuned = replace(said, delay_ms=4000, pace="So it is.", settings=settings)
    assert list(explain.sentences(tuned))[2:4] == [
        "Checkpoints come after 4000 ms: So it is.",
        "Set while it runs: compare-timeout is 500 ms (pair file: 300 ms).",
    ]


def test_a_bundle_of_what_a_folder_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    folder = tmp_path / "web"
    (folder / "a").mkdir(parents=True)
    (folder / "pair.toml").write_text('[guest]\nappend = "password=hunter2"\nqemu = "/bin/true"\n')
    (folder / "supervisor.log").write_text("agent said hunter2\n" * 3)
    (folder / "a/qemu.log").write_bytes(b"begin\n" + b"x" * bundling.LOG_MAX + b"\nthe end\n")
    (folder / "journal.jsonl").write_text("damaged\n")

    parts = bundling.collect("web", folder, None, "its supervisor is gone")
    file = tmp_path / "web.tar.gz"
    manifest = bundling.pack(parts, file, "web")
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        content = {one.name: archive.extractfile(one) for one in archive.getmembers()}
        texts = {name: data.read() for name, data in content.items() if isinstance(data, io.IOBase)}
    assert json.loads(texts["web/MANIFEST.json"]) == manifest
    assert set(texts) == {"web/MANIFEST.json", *(f"web/{name}" for name in manifest["files"])}
    assert not any(b"hunter2" in data for data in texts.values())
    assert texts["web/a/qemu.log"] == b"the end\n"
    assert texts["web/journal.jsonl"] == b"damaged\n"
    missing = {one["name"]: one["why"] for one in manifest["missing"]}
    assert missing["status.json"] == missing["b/qmp.json"] == "its supervisor is gone"
    assert "bytes are left out" in missing["a/qemu.log, its beginning"]
    assert "damaged" in missing["QEMUs that the supervisor left"]
    assert manifest["schema"] == plain.SCHEMA


def refused(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_bundle_needs_a_pair_and_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    assert run_verb(["bundle", "web"]) == 4
    (tmp_path / "web").mkdir()
    assert run_verb(["bundle", "web", "-o", str(tmp_path / "none/b.tar.gz")]) == 1
    said = capsys.readouterr().err
    assert f"There is no folder {tmp_path}/none for b.tar.gz." in said and "mkdir -p" in said
    monkeypatch.setattr(bundling, "pack", refused)
    assert run_verb(["bundle", "web", "-o", str(tmp_path / "b.tar.gz")]) == 1
    assert "b.tar.gz cannot be written: No space left on device." in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["web"]

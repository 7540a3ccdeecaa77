"""Every verb keeps its exit code and its words, whatever its streams and its folder are like."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.surroundings import ENVIRONMENT, SURROUNDINGS
from support.views import document

from coloctl.cli.verbs import KEEP_THEIR_CODE, VERBS
from coloctl.control.commands import COMMANDS
from coloctl.control.listener import listen
from coloctl.control.server import ControlServer

pytestmark = pytest.mark.qemu

ROOT = Path(__file__).parents[1]
TIMELINE = {
    "generation": 3, "cause": "operator", "survivor": "b", "lost": "a",
    "role_before": "secondary", "at": "2026-11-21T03:02:01.000+00:00", "fault_ms": -1.0,
    "steps": {"detected": 0.0, "fenced": 4.0, "running": 9.5}, "point_of_no_return": "arbitrated",
}  # fmt: skip
#: What the supervisor of the pair says; its reason is in no terminal's alphabet.
REASON = "Der Wächter sagt: 準備ができた \U0001f600."
VIEW = {**document(), "reason": REASON, "supervisor_pid": 0, "protection": "colo"}
ANSWERS: dict[str, Any] = {
    "query-pair": VIEW, "pair-start": VIEW, "pair-protect": VIEW, "pair-unprotect": VIEW,
    "pair-fence-confirm": VIEW, "pair-failover": TIMELINE, "pair-switchover": TIMELINE,
    "pair-pause": {"paused": True, "before": False},
    "pair-resume": {"paused": False, "before": True},
    "pair-set": {"changed": [{"name": "checkpoint-delay", "before": 500, "after": 200}]},
    "pair-checkpoint": {"count": 7, "pause_ms": 1.5}, "node-qmp": {"status": REASON},
    "pair-stop": {"how": "killed"}, "query-history": {"failovers": [TIMELINE], "unreadable": 1},
    "query-plan": [{"node": "a", "why": REASON, "act": "wait"}],
    "query-dump": {"seq": 1, "records": [
        {"exists": "checkpoints", "count": 2, "delay_ms": 200, "last_pause_ms": None},
        {"exists": "diagnosis", "name": "healthy", "evidence": [REASON]},
    ]},
    "query-explain": {
        "name": "web", "protection": "colo", "reason": REASON, "since_s": 1.0, "exposed_s": None,
        "generation": 1, "paused": False, "auto_failover": True, "fencing": "kill", "acting": "",
        "settings": {}, "delay_ms": 200, "pace": "", "diagnosis": None, "decision": None,
        "paths": [], "triggers": [],
    },
    "query-evidence": {"observation": None, "finding": None}, "query-recording": [],
    "query-schema": {}, "query-version": {},
}  # fmt: skip
#: Verbs as they are typed, so that each says something and none takes long.
TYPED: list[list[str]] = [
    ["--help"], ["status", "--help"], [], ["nonsense"],
    ["start", "web.toml"], ["start", "/nowhere/web.toml"],
    ["start", "--dry-run", "nowhere.toml"], ["run", "/nowhere/web.toml"],
    ["doctor", "/nowhere/web.toml"], ["doctor", "web.toml"],
    *([verb, "web", "--yes"] for verb in ("failover", "switchover", "stop", "unprotect")),
    ["failover", "web", "--yes", "-f", "json"], ["failover", "web"], ["stop", "web", "--dry-run"],
    *([verb, "web"] for verb in ("protect", "reprotect", "pause", "resume", "checkpoint",
                                 "status", "events", "history", "explain")),
    *([verb, "web", "-f", "json"] for verb in ("status", "events", "history", "explain")),
    ["status"], ["status", "-e"], ["status", "web", "-e"], ["status", "web", "-f", "tsv"],
    ["history", "web", "-e"], ["list"], ["list", "-f", "json"], ["status", "nobody"],
    ["fence", "confirm", "web", "a", "--yes"], ["fence", "history", "web"],
    ["set", "web", "checkpoint-delay=200"], ["qmp", "web", "a", "query-status"],
    ["wait", "web", "--for", "colo"], ["query", "web", "is-state", "colo"],
    ["query", "web", "is-state", "down"], ["verify", "web"],
    ["bundle", "web"], ["bundle", "nobody"], ["agent"], ["certs", "show", "/nowhere"],
    ["host", "list"], ["host", "check", "nowhere"], ["completion", "bash"],
    ["probe", "/nowhere/qemu"], ["schema", "check", "/nowhere"], ["lab", "down", "--nonsense"],
    ["chaos", "--nonsense"], ["bench", "--help"], ["demo", "--nonsense"],
]  # fmt: skip


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder in which a pair is served whose supervisor has an answer to everything."""
    folder = tmp_path_factory.mktemp("s")
    (folder / "web").mkdir()
    loop, ending = asyncio.new_event_loop(), asyncio.Event()
    ready = threading.Event()

    def answering(name: str) -> Any:
        async def answer(_arguments: Any) -> Any:
            return ANSWERS[name]

        return answer

    async def serve() -> None:
        handlers = {COMMANDS[name]: answering(name) for name in ANSWERS}
        listener = listen(folder / "web" / "control.sock")
        server = ControlServer(listener, handlers, version="1.2.3")
        serving = asyncio.create_task(server.serve())
        ready.set()
        await ending.wait()
        await server.aclose()
        await serving

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield folder
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(20)
        loop.close()


def played(name: str, state: Path, folder: Path) -> list[dict[str, Any]]:
    """What became of each verb in that surrounding."""
    folder.mkdir()
    (folder / "verbs").write_text(json.dumps(TYPED))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "COLOCTL_STATE_DIR": str(state), "TERM": "xterm", "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    for word in name.split(", "):
        environment |= ENVIRONMENT.get(word, {})
    subprocess.run(
        [sys.executable, "-m", "support.surroundings", name, str(folder)],
        env=environment, cwd=folder, check=True, timeout=120,
    )  # fmt: skip
    outcomes: list[dict[str, Any]] = json.loads((folder / "said").read_text())
    return outcomes


@pytest.fixture(scope="module")
def outcomes(
    state: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("surroundings")
    with ThreadPoolExecutor(2) as pool:
        plays = {
            name: pool.submit(played, name, state, folder / str(number))
            for number, name in enumerate(SURROUNDINGS)
        }
        return {name: play.result() for name, play in plays.items()}


def expected(words: list[str], ordinary: dict[str, Any], *, lost: bool) -> int:
    """The exit code of the verb, where its output is ``lost`` or not."""
    code: int = ordinary["code"]
    keeps = not lost or not ordinary["out"] or (words and words[0] in KEEP_THEIR_CODE)
    return code if keeps or code else 1


def test_the_table_has_every_verb() -> None:
    assert {name for section in VERBS.values() for name in section} <= {w[0] for w in TYPED if w}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_verb_keeps_its_code_and_says_what_is_wrong(
    name: str, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    takes_nothing = "stdout full" in name or "stdout closed" in name
    lost = takes_nothing or "stdout unread" in name
    heard = "stderr" not in name
    for words, ordinary, seen in zip(TYPED, outcomes["ordinary"], outcomes[name], strict=True):
        said = f"{words} in '{name}': {seen}, ordinarily {ordinary}"
        assert "Traceback" not in seen["err"] + seen["out"], said
        assert "Exception ignored" not in seen["err"], said
        if "folder gone" in name and words[0:1] in (["bundle"], ["lab"]):
            assert seen["code"] in (ordinary["code"], 1, 2), said  # it writes into that folder
        else:
            assert seen["code"] == expected(words, ordinary, lost=lost), said
        if heard and ordinary["err"]:
            assert seen["err"], said
        if takes_nothing and heard and ordinary["out"]:
            assert "Standard output cannot be written" in seen["err"], said
        if "folder gone" in name and words == ["bundle", "web"]:  # it has no place there
            refusal = [line for line in seen["err"].splitlines() if line.startswith("error: ")]
            assert refusal == ["error: The folder in which this was typed is gone."], said
            assert (seen["code"], seen["out"], ordinary["code"]) == (1, "", 0), said
        elif not lost and "terminal" not in name and ordinary["out"].strip():
            assert seen["out"].strip(), said


@pytest.mark.parametrize("name", ["ascii, one column", "latin-1, folder gone, dumb"])
def test_a_document_survives_any_alphabet(
    name: str, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    at = TYPED.index(["status", "web", "-f", "json"])
    assert json.loads(outcomes[name][at]["out"])["reason"] == REASON

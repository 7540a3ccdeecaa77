"""Verbs that only read start quickly: while supervisors answer, they import little."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.livings import SLEEP
from support.views import PROTECTED, document

from coloctl import paths
from coloctl.control.commands import QueryPair
from coloctl.control.listener import listen
from coloctl.control.server import ControlServer
from coloctl.host.process import identity_of
from coloctl.journal import Journal
from coloctl.model.event import Kind, Record
from coloctl.supervisor import leftover

pytestmark = pytest.mark.unit

HEAVY = ("rich", "pydantic", "asyncio", "qemu", "coloctl.host")
#: Each verb with what it must not import.
READING = [
    (["status", "-f", "json"], HEAVY),
    (["status", "-f", "tsv"], HEAVY),
    (["list", "-f", "json"], HEAVY),
    (["list", "-f", "tsv"], HEAVY),
]
#: Tables are drawn by rich.
DRAWING = [(verb, HEAVY[1:]) for verb in (["status"], ["list"])]
SCRIPT = (
    "import sys; from coloctl.cli.verbs import run_verb; code = run_verb(sys.argv[2:]); "
    "print([name for name in sys.argv[1].split() if name in sys.modules], file=sys.stderr); "
    "sys.exit(code)"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder of the pair ``web`` belongs, on a machine without any pair."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry" / "disks"))
    return paths.pair_dir("web")


def typed(verb: Sequence[str], heavy: Sequence[str]) -> tuple[int, str, str]:
    """Return exit code and output of the verb, and which of ``heavy`` it imported."""
    argv = [sys.executable, "-c", SCRIPT, " ".join(heavy), *verb]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("verb", "heavy"), [*READING, (["status"], HEAVY[1:]), (["list"], HEAVY)])
def test_without_a_pair_verbs_import_little(
    folder: Path, verb: list[str], heavy: tuple[str, ...]
) -> None:
    code, out, imported = typed(verb, heavy)
    assert (code, imported) == (0, "[]\n"), out


@pytest.mark.parametrize(
    ("verb", "heavy"), [*READING, *DRAWING, (["status", "web", "-f", "json"], HEAVY)]
)
async def test_while_the_supervisor_answers_verbs_import_little(
    folder: Path, verb: list[str], heavy: tuple[str, ...]
) -> None:
    async def query_pair(asked: QueryPair) -> dict[str, Any]:
        return document(PROTECTED)

    paths.make_private(folder)
    handlers: dict[Any, Any] = {QueryPair: query_pair}
    server = ControlServer(listen(paths.control_socket("web")), handlers, version="1.2.3")
    serving = asyncio.create_task(server.serve())
    try:
        code, out, imported = await asyncio.to_thread(typed, verb, heavy)
    finally:
        await server.aclose()
        await serving
    assert (code, imported) == (0, "[]\n"), out
    assert "web" in out and "colo" in out


@pytest.mark.parametrize("lives", [True, False])
def test_where_the_supervisor_is_gone_verbs_say_what_it_left(folder: Path, lives: bool) -> None:
    """Goal: the answer is right, so the processes of the journal are looked for, which costs."""
    paths.make_private(folder)
    with subprocess.Popen(SLEEP) as qemu:
        try:
            who = identity_of(qemu.pid)
            assert who is not None
            with Journal(folder / leftover.JOURNAL) as journal:
                data = {"launched": "primary", **who.to_json()}
                journal.append(Record(Kind.OUTCOME, act="start", node="a", data=data))
            if not lives:
                qemu.kill()
                qemu.wait()
            code, out, imported = typed(["status", "-f", "json"], ["rich"])
        finally:
            qemu.kill()
    (pair,) = json.loads(out)["pairs"]
    assert (code, imported, pair["supervisor"]) == (3, "[]\n", "gone")
    assert (f"process {qemu.pid}" in pair["error"]) is lives
    assert "coloctl stop web --force" in pair["hint"]

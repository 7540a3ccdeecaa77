"""Verbs that only read start quickly: while supervisors answer, they import little."""

from __future__ import annotations

import asyncio
import json
import re
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
#: Forks for each verb, so that none finds a module that another one imported.
SCRIPT = """
import json, os, sys
from coloctl.cli.verbs import run_verb
for verb, heavy in json.loads(sys.argv[1]):
    if os.fork() == 0:
        code = run_verb(verb)
        print([name for name in heavy if name in sys.modules], file=sys.stderr, flush=True)
        sys.exit(code)
    print("exit code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    print("", file=sys.stderr, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder of the pair ``web`` belongs, on a machine without any pair."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry" / "disks"))
    return paths.pair_dir("web")


def typed(verbs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[tuple[int, str, str]]:
    """Return exit code and output of each verb, and which of its ``heavy`` it imported."""
    argv = [sys.executable, "-c", SCRIPT, json.dumps(verbs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    parts = re.findall(r"(.*?)^exit code (\d+)\n", done.stdout, re.M | re.S)
    imported = done.stderr.split("\n\n")[: len(verbs)]
    assert len(parts) == len(imported) == len(verbs), done
    return [(int(code), out, one) for (out, code), one in zip(parts, imported, strict=True)]


def test_without_a_pair_verbs_import_little(folder: Path) -> None:
    verbs = [*READING, (["status"], HEAVY[1:]), (["list"], HEAVY)]
    for (verb, _), (code, out, imported) in zip(verbs, typed(verbs), strict=True):
        assert (code, imported) == (0, "[]"), (verb, out)


async def test_while_the_supervisor_answers_verbs_import_little(folder: Path) -> None:
    verbs = [*READING, *DRAWING, (["status", "web", "-f", "json"], HEAVY)]

    async def query_pair(asked: QueryPair) -> dict[str, Any]:
        return document(PROTECTED)

    paths.make_private(folder)
    handlers: dict[Any, Any] = {QueryPair: query_pair}
    server = ControlServer(listen(paths.control_socket("web")), handlers, version="1.2.3")
    serving = asyncio.create_task(server.serve())
    try:
        answers = await asyncio.to_thread(typed, verbs)
    finally:
        await server.aclose()
        await serving
    for (verb, _), (code, out, imported) in zip(verbs, answers, strict=True):
        assert (code, imported) == (0, "[]"), (verb, out)
        assert "web" in out and "colo" in out, verb


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
            [(code, out, imported)] = typed([(["status", "-f", "json"], ["rich"])])
        finally:
            qemu.kill()
    (pair,) = json.loads(out)["pairs"]
    assert (code, imported, pair["supervisor"]) == (3, "[]", "gone")
    assert (f"process {qemu.pid}" in pair["error"]) is lives
    assert "coloctl stop web --force" in pair["hint"]

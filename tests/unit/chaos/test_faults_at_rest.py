"""Faults around a pair: who reads what its supervisor says, what is written about its disks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pairfiles import pair_text
from test_faults import inject, pair, setup_of

from coloctl.chaos.faults import supervisor

pytestmark = pytest.mark.unit


#: Says a line ten times a second on each of its outputs; a file tells how many it has said.
CHATTER = """
import os, sys, time
told = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for number in range(600):
    for fd in (1, 2):
        try:
            os.write(fd, b"line %d\\n" % number)
        except OSError:
            pass
    os.pwrite(told, b"%5d" % number, 0)
    time.sleep(0.1)
"""


def stands_still(file: Path) -> bool:
    """Whether nothing is written to it for five times as long as usual."""
    before = file.read_bytes()
    time.sleep(0.5)
    return file.read_bytes() == before


@pytest.mark.parametrize("how", ["gone", "asleep"])
def test_the_reader_of_a_supervisors_output_leaves_or_sleeps(tmp_path: Path, how: str) -> None:
    stage, log, count = setup_of(tmp_path, tmp_path), tmp_path / "log", tmp_path / "count"

    def until(true: Callable[[], object]) -> None:
        give_up = time.monotonic() + 30
        while not true():
            assert time.monotonic() < give_up, (log.read_text(), count.read_text())
            time.sleep(0.02)

    with supervisor.output_pipe(stage), log.open("wb") as out:
        argv = [sys.executable, "-P", "-c", CHATTER, str(count), *supervisor.SUPERVISOR]
        environment = {**os.environ, **stage.environment}
        with subprocess.Popen(argv, env=environment, stdout=out, stderr=out) as chatter:
            try:
                until(lambda: log.read_text().count("line 1\n") == 2)
                fault = inject("reader-gone", "supervisor", None, pair(tmp_path), how=how)
                until(lambda: stands_still(log))
                heard = log.read_text()
                if how == "gone":
                    said = count.read_text()
                    until(lambda: int(count.read_text()) > int(said) + 3)  # it says on, unheard
                    assert log.read_text() == heard
                else:
                    until(lambda: stands_still(count))  # it waits for its reader
                fault.heal()
                if how == "asleep":
                    until(lambda: "line" in log.read_text().removeprefix(heard))
            finally:
                chatter.kill()
    fault.heal()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count", "log"]


#: As much of a pair file as names the disks.
PAIR = pair_text("p")
WORD = '{"format": 2, "pair": "p", "node": "b", "generation": 1, "state": "in-sync"}\n'


@pytest.mark.parametrize("where", ["beside", "registry", "both"])
@pytest.mark.parametrize("how", ["lost", "emptied", "garbled"])
def test_what_is_written_about_a_disk_is_harmed_where_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, how: str
) -> None:
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry"))
    (tmp_path / "registry").mkdir()
    (tmp_path / "p.toml").write_text(PAIR)
    beside, other = tmp_path / "b.qcow2.generation", tmp_path / "a.qcow2.generation"
    entry, others = tmp_path / "registry" / "1.json", tmp_path / "registry" / "2.json"
    for file in (beside, entry):
        file.write_text(WORD)
    for file in (other, others):
        file.write_text(WORD.replace('"b"', '"a"'))
    fault = inject("companion-harmed", "b", None, pair(tmp_path), where=where, how=how)
    assert fault.nodes == ("b",)
    for file, name in ((beside, "beside"), (entry, "registry")):
        left = file.read_text() if file.exists() else None
        if where in (name, "both"):
            assert left == {"lost": None, "emptied": "", "garbled": "\0" * 4096}[how]
        else:
            assert left == WORD
    assert other.read_text() == others.read_text() == WORD.replace('"b"', '"a"')

"""A process that the kernel killed for its memory is told from one that others killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloctl.host import LocalHost, memory_kill
from coloctl.host.records import Death
from coloctl.model.launch import Launch

pytestmark = pytest.mark.unit

#: Takes 256 MiB when its input says so.
GREEDY = "import sys; sys.stdin = open(sys.argv[1]); sys.stdin.readline(); b'x' * (256 << 20)"
LIMIT = 32 << 20


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory group of this test, with a limit; the kernel's version 1 or 2, as it is here."""
    mine = memory_kill.group_of(os.getpid())
    if mine is None:
        pytest.skip("no memory group can be read here")
    folder = mine / f"coloctl-test-{os.getpid()}"
    try:
        folder.mkdir()
        old = (folder / "memory.limit_in_bytes").exists()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(LIMIT))
        (folder / ("memory.swappiness" if old else "memory.swap.max")).write_text("0")
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no memory group can be made here: {error.strerror}")
    yield folder
    folder.rmdir()


@pytest.mark.parametrize("how", ["its memory", "others", "its own end"])
async def test_the_end_of_a_process_in_a_group_of_its_own(
    tmp_path: Path, group: Path, how: str
) -> None:
    os.mkfifo(tmp_path / "go")
    program = Launch((sys.executable, "-S", "-c", GREEDY, str(tmp_path / "go")))
    async with LocalHost() as host:
        process = await host.launch(program, stderr=tmp_path / "log")
        (group / "cgroup.procs").write_text(str(process.identity.pid))
        again = await host.adopt(process.identity)
        assert again is not None
        ends = asyncio.gather(process.wait(), again.wait())
        if how == "others":
            os.kill(process.identity.pid, signal.SIGKILL)
        elif how == "its own end":
            process.signal(signal.SIGTERM)
        else:
            with await asyncio.to_thread((tmp_path / "go").open, "w") as go:
                go.write("\n")
        own, adopted = await ends
        again.close()
    pid = process.identity.pid
    if how == "its memory":
        said = f"process {pid} was killed by the kernel at its memory limit of 32 MiB"
        assert (str(adopted), adopted.memory_limit) == (said, LIMIT)
        assert own.exit_code == -signal.SIGKILL
    else:
        name = "SIGKILL" if how == "others" else "SIGTERM"
        assert str(own) == f"process {pid} was killed by {name}"
        assert adopted.memory_limit is None


def test_a_group_that_others_share_or_that_counted_before_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, procs = tmp_path / "memory.events", tmp_path / "cgroup.procs"
    (tmp_path / "memory.max").write_text("max\n")
    counts.write_text("oom 3\noom_kill 2\n")
    procs.write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(memory_kill, "group_of", lambda _pid: tmp_path)
    kills = memory_kill.MemoryKills(os.getpid())
    assert kills.look() is None
    counts.write_text("oom 4\noom_kill 3\n")
    # A program of its own is one of another session; process 1 may be of this one.
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        procs.write_text(f"{os.getpid()}\n{other.pid}\n")
        seen = kills.look()
        other.kill()
    assert seen is None
    (tmp_path / "memory.max").write_text(f"{LIMIT}\n")
    procs.write_text("")
    assert kills.look() == LIMIT
    counts.unlink()
    assert kills.look() == LIMIT
    assert memory_kill.MemoryKills(os.getpid()).look() is None


def test_a_machine_without_memory_is_named_as_such() -> None:
    assert (
        str(Death(7, 0.0, None, 0)) == "process 7 was killed by the kernel because memory ran out"
    )

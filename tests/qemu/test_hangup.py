"""A terminal that closes: no program that a verb has started stays behind, and guests run on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.smallpair import write_small_pair

from coloctl import procfs
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

PATIENCE_S = 60.0


def descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs; none of one that is gone."""
    children = procfs.children(pid)
    return [*children, *(further for child in children for further in descendants(child))]


def runs(pid: int) -> bool:
    """Whether the process still runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


#: Under nohup the suite has SIGHUP ignored, and so would `doctor`, as it should.
FROM_A_TERMINAL = ["env", "--default-signal=HUP"]
#: A script starts what is in its background with SIGINT ignored (POSIX, "Asynchronous Lists").
BACKGROUND = [*FROM_A_TERMINAL, "--ignore-signal=INT"]


@pytest.mark.parametrize("before", [FROM_A_TERMINAL, BACKGROUND], ids=["foreground", "background"])
def test_a_verb_ends_the_qemu_img_that_it_waits_for(
    qemu_builds: Callable[[str], qemu.Build],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
) -> None:
    """`doctor` waits for a qemu-img whose image never answers, and its terminal closes."""
    build = qemu_builds("11.1")
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "qemu-system-x86_64").symlink_to(build.binary)
    started = tmp_path / "started"
    slow = tools / "qemu-img"
    slow.write_text(f"#!/bin/sh\necho $$ > {started}.new\nmv {started}.new {started}\nsleep 600\n")
    slow.chmod(0o700)
    file = write_small_pair(tmp_path / "web.toml", build, binary=tools / "qemu-system-x86_64")
    argv = [*before, sys.executable, "-P", "-m", "coloctl.cli.main", "doctor", str(file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as doctor:
        try:
            give_up = time.monotonic() + PATIENCE_S
            while not started.exists():
                assert time.monotonic() < give_up and doctor.poll() is None
                time.sleep(0.05)
            waiting = int(started.read_text())
            assert runs(waiting)
            sleeping = procfs.children(waiting)
            if before is BACKGROUND:  # Ctrl-C is not for it
                doctor.send_signal(signal.SIGINT)
                time.sleep(0.5)
                assert doctor.poll() is None
            doctor.send_signal(signal.SIGHUP)
            _, said = doctor.communicate(timeout=PATIENCE_S)
        finally:
            family = descendants(doctor.pid) if doctor.poll() is None else []
            doctor.kill()
            for pid in family:  # of a `doctor` that did not end them
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert doctor.returncode == 130, said
    assert b"Traceback" not in said
    assert not [pid for pid in (waiting, *sleeping) if runs(pid)]

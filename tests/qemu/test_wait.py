"""`coloctl wait` keeps its own time, whatever the supervisor does or does not do.

Goal: a script that waits T seconds goes on after T, also when the supervisor is frozen or gone.
Method: a real supervisor without a guest is stopped by SIGSTOP, or killed, with its watcher. Times
are compared with one another: another T takes another time, and nothing waits for the rest of one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.moments import Mortal, write_pair

from coloctl import pairfile, paths
from coloctl.control.daemon.spawn import SpawnedSupervisor, spawned_supervisor
from coloctl.control.daemon.watcher import watcher_of
from coloctl.errors import DeadlineMissed, NoSuchPair, Unreachable
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu


@pytest.fixture
def pair(
    qemu_builds: Callable[[str], qemu.Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mortal:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    return write_pair(tmp_path, qemu_builds("11.1"))


@pytest.fixture
def born(pair: Mortal) -> Iterator[SpawnedSupervisor]:
    """The pair's supervisor; no guest runs."""
    with spawned_supervisor(pairfile.load(pair.file)) as one:
        try:
            yield one
        finally:
            one.end()


def processes_of(pair: Mortal) -> tuple[int, int]:
    """The watcher and the supervisor of the pair: one that is alone would be replaced."""
    supervisor = pair.view()["supervisor_pid"]
    watcher = watcher_of(supervisor)
    assert watcher is not None
    return watcher, supervisor


def waited(pair: Mortal, timeout_s: float) -> tuple[int, str, float]:
    """What `wait` for a state that never comes answers, and how long it takes, seconds."""
    began = time.monotonic()
    waiting = pair.begin("wait", pair.name, "--for", "colo", "--timeout", f"{timeout_s:g}s")
    said, _ = waiting.communicate(timeout=60)
    return waiting.returncode, said, time.monotonic() - began


def test_a_wait_ends_in_its_own_time_while_the_supervisor_is_frozen(
    pair: Mortal, born: SpawnedSupervisor
) -> None:
    assert waited(pair, 0.5)[0] == DeadlineMissed.exit_code  # it answers: the pair is down
    frozen = processes_of(pair)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        short, long = waited(pair, 1.5), waited(pair, 6)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    for code, said, _ in (short, long):
        assert code == DeadlineMissed.exit_code, said
        assert pair.name in said and "Traceback" not in said
    assert short[2] >= 1.5 and long[2] >= 6
    # Both took the 10 s of a question once. What both need to begin is as long for either.
    assert short[2] < 0.75 * long[2], (short, long)


def test_a_wait_for_a_supervisor_that_is_gone_ends_at_once(
    pair: Mortal, born: SpawnedSupervisor
) -> None:
    for pid in processes_of(pair):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    timeout_s = 40.0
    code, said, took_s = waited(pair, timeout_s)
    assert code == Unreachable.exit_code, said
    assert pair.name in said and "Traceback" not in said
    assert took_s < timeout_s / 2
    code, said, took_s = waited(Mortal(pair.file.with_name("nobody.toml")), timeout_s)
    assert code == NoSuchPair.exit_code and took_s < timeout_s / 2, said
    assert paths.pair_dir(pair.name).exists()

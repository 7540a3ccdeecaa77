"""A supervisor that stands still is noticed, replaced, and named to whoever asks it in vain."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_watcher import PROGRAM, Watched

from coloctl.control.client import ControlClient
from coloctl.control.daemon import pulse
from coloctl.control.daemon.pulse import SILENT_S, STOPPED_S, Pulse
from coloctl.errors import DeadlineMissed

pytestmark = pytest.mark.unit


@pytest.fixture
def door(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen(16)
        yield listener


def looks(one: Pulse, seconds: float) -> str:
    for _ in range(int(seconds)):
        if why := one.look(1.0):
            return why
    return ""


def test_one_that_greets_is_left_alone(door: socket.socket, tmp_path: Path) -> None:
    one = Pulse(os.getpid(), tmp_path / "control.sock")
    greeting = threading.Event()

    def greet() -> None:
        door.settimeout(0.1)
        while not greeting.is_set():
            with contextlib.suppress(TimeoutError):
                door.accept()[0].sendall(b"{}")

    serving = threading.Thread(target=greet)
    serving.start()
    try:
        for _ in range(40):
            assert one.look(1.0) == ""
            time.sleep(0.02)
    finally:
        greeting.set()
        serving.join()
        one.close()


def test_one_that_greets_no_more_is_noticed(door: socket.socket, tmp_path: Path) -> None:
    one = Pulse(os.getpid(), tmp_path / "control.sock")
    one.look(1.0)
    client, _ = door.accept()
    client.close()
    assert one.look(1.0) == ""
    assert "not greeted" in looks(one, SILENT_S + 2 * pulse.ASK_PERIOD_S)
    one.close()


def test_one_that_has_never_greeted_may_be_at_work(door: socket.socket, tmp_path: Path) -> None:
    one = Pulse(os.getpid(), tmp_path / "control.sock")
    assert looks(one, 10 * SILENT_S) == ""
    one.close()


def test_without_a_socket_nothing_is_known(tmp_path: Path) -> None:
    assert looks(Pulse(os.getpid(), tmp_path / "control.sock"), 10 * SILENT_S) == ""


def test_one_that_is_stopped_is_noticed_sooner(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        one = Pulse(process.pid, tmp_path / "control.sock")
        assert looks(one, 2 * STOPPED_S) == ""
        process.send_signal(signal.SIGSTOP)
        while not Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].startswith(" T"):
            time.sleep(0.01)
        assert looks(one, STOPPED_S - 1) == ""
        assert "stopped" in looks(one, 2)
        process.kill()


def test_a_frozen_supervisor_is_killed_and_replaced(tmp_path: Path) -> None:
    """Never two: the first is dead before the second begins, so it can never thaw."""
    watched = Watched(tmp_path, stopped_s=1.0)
    try:
        first = watched.ask()
        os.kill(first, signal.SIGSTOP)
        end = time.monotonic() + 60
        while watched.began() < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert not Path(f"/proc/{first}").exists()
        assert watched.ask() != first
    finally:
        os.killpg(watched.process.pid, signal.SIGKILL)
        _, said = watched.process.communicate()
    assert f"The supervisor (process {first}) has been stopped for" in said


@pytest.mark.parametrize("stopped", [True, False])
def test_a_verb_names_the_process_and_what_to_type(tmp_path: Path, stopped: bool) -> None:
    (tmp_path / "web").mkdir()
    path = tmp_path / "web" / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        fd = listener.fileno()
        busy = PROGRAM.replace("client, _ = listener.accept()", "signal.pause()")
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", busy, str(tmp_path / "pids"), str(fd)], pass_fds=(fd,)
        )
    try:
        while not (tmp_path / "pids").exists():
            time.sleep(0.01)
        if stopped:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        began = time.monotonic()
        with pytest.raises(DeadlineMissed) as missed:
            ControlClient.connect(path, 0.2)
        assert time.monotonic() - began < 60
        assert f"process {process.pid}" in missed.value.message
        assert ("is stopped" in missed.value.message) is stopped
        assert (f"kill -CONT {process.pid}" in str(missed.value.hint)) is stopped
        assert "--adopt" in str(missed.value.hint)
    finally:
        process.kill()
        process.wait()

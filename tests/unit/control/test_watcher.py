"""A supervisor that was killed is started again; one that left on purpose is not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coloctl.control.daemon import watcher
from coloctl.urgency import hasten_start

pytestmark = pytest.mark.unit

PATIENCE_S = 20.0

#: A supervisor in three lines: notes that it began, serves one client after the other, ends when
#: told to. A client that says a word ends it with the code of that word. An exception of a signal
#: handler is lost where it comes inside a finalizer, so the handlers raise none.
PROGRAM = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
with open(sys.argv[1], "a") as began:
    print(os.getpid(), file=began)
listener = socket.socket(fileno=int(sys.argv[2]))
while True:
    client, _ = listener.accept()
    client.sendall(str(os.getpid()).encode())
    if word := client.recv(10):
        sys.exit(int(word))
"""


IMPATIENT = """
import sys
from coloctl.control.daemon import pulse, watcher
pulse.STOPPED_S = {}
sys.exit(watcher.main())
"""


class Watched:
    """A watcher with that program, and its socket."""

    def __init__(self, folder: Path, stopped_s: float | None = None) -> None:
        """``stopped_s``: for how long it bears a supervisor that is stopped."""
        self.folder = folder
        self.socket = folder / "s"
        self.pids = folder / "pids"
        (folder / "journal.jsonl").touch()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.socket))
            listener.listen(16)
            fd = listener.fileno()
            argv = [sys.executable, "-S", "-c", PROGRAM, str(self.pids), str(fd)]
            started = ["-m", "coloctl.control.daemon.watcher"]
            if stopped_s is not None:
                started = ["-c", IMPATIENT.format(stopped_s)]
            self.process = subprocess.Popen(
                [sys.executable, "-P", *started, str(folder), *argv],
                pass_fds=(fd,), stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip

    def ask(self, word: str = "") -> int:
        """The pid of whoever answers; ``word`` is its last."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.socket))
            pid = int(client.recv(100))
            client.sendall(word.encode())
            return pid

    def began(self) -> int:
        return len(self.pids.read_text().split())

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)


def niceness(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    one = Watched(tmp_path)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.communicate()


def until(true: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_the_second_supervisor_begins_before_programs_that_compute(watched: Watched) -> None:
    """As far as this machine allows it."""
    first = watched.ask()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as another:
        usual = niceness(another.pid)
        hasten_start(another.pid)
        hastened = niceness(another.pid)
    assert niceness(first) == usual
    os.kill(first, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{first}").exists())  # until then it may accept once more
    second = watched.ask()
    until(lambda: niceness(second) == hastened)


def test_after_a_kill_the_same_socket_is_answered_by_another(watched: Watched) -> None:
    first = watched.ask()
    os.kill(first, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{first}").exists())  # until then it may accept once more
    second = watched.ask()  # connects while nobody accepts, and waits
    assert second != first and watched.process.poll() is None


def test_an_error_counts_as_a_death(watched: Watched) -> None:
    first = watched.ask("1")
    assert watched.ask() != first


def test_an_orderly_end_is_the_end_of_both(watched: Watched) -> None:
    watched.ask("0")
    assert watched.ended() == 0 and watched.began() == 1


def test_a_pair_that_is_gone_needs_no_supervisor(watched: Watched) -> None:
    (watched.folder / "journal.jsonl").unlink()
    watched.ask("3")
    assert watched.ended() == 3 and watched.began() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_wish_to_end_is_handed_on(watched: Watched, number: signal.Signals) -> None:
    pid = watched.ask()
    watched.process.send_signal(number)
    code = watched.ended()
    assert watched.began() == 1 and not Path(f"/proc/{pid}").exists()
    assert code == (0 if number is signal.SIGTERM else 128 + number)


def test_without_its_watcher_a_supervisor_goes_on(watched: Watched) -> None:
    pid = watched.ask()
    assert watcher.watcher_of(pid) == watched.process.pid
    watched.process.kill()
    watched.process.wait()
    assert watched.ask() == pid
    until(lambda: watcher.watcher_of(pid) is None)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "module, watches",
    [
        ("coloctl.control.daemon.watcher", True),
        ("coloctl.control.watcher", True),  # started before an update moved the module
        ("coloctl.control.daemon.serve", False),
    ],
)
def test_a_watcher_is_recognized_by_the_names_of_its_module(module: str, watches: bool) -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert watcher.watcher_of(child) == (parent.pid if watches else None)
        parent.communicate()  # the end of its input ends the child, and so the parent


def test_it_gives_up_in_the_end_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BACKOFF_S", (0.0, 0.0))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "journal.jsonl").touch()
    said: list[str] = []
    argv = [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"]
    assert watcher.watch(tmp_path, argv, said.append) == 137
    assert len(said) == 3 and "signal 9" in said[0]
    assert "after 2 in a row; it is not started again" in said[-1]


def test_one_that_lived_long_has_all_tries_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(watcher, "STEADY_S", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "journal.jsonl").touch()
    lives = tmp_path / "lives"
    script = f"""
import pathlib
lives = pathlib.Path({str(lives)!r})
lives.write_text((lives.read_text() if lives.exists() else "") + "x")
raise SystemExit(0 if len(lives.read_text()) == 5 else 1)
"""
    assert watcher.watch(tmp_path, [sys.executable, "-S", "-c", script], lambda _: None) == 0


def test_a_start_that_the_system_refuses_is_tried_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is being replaced: once it is back, so is the supervisor."""
    monkeypatch.setattr(watcher, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(watcher, "REFUSED_S", (0.0, 0.01))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "journal.jsonl").touch()
    python, said = tmp_path / "python", list[str]()

    def say(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 8:  # more often in a row than an end by a signal would be forgiven
            python.symlink_to(sys.executable)

    assert watcher.watch(tmp_path, [str(python), "-c", "raise SystemExit(0)"], say) == 0
    assert len(said) == 8 and "No such file or directory; the next try" in said[0]


def test_a_first_start_that_is_refused_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    said: list[str] = []
    assert watcher.watch(tmp_path, ["/nonexistent/python"], said.append) == watcher.NOT_STARTED
    assert said == ["The supervisor cannot be started: /nonexistent/python: No such file or "
                    "directory."]  # fmt: skip


def test_a_watcher_whose_log_takes_nothing_goes_on(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    lives = tmp_path / "lives"
    script = f"""
open({str(lives)!r}, "a").write("x")
raise SystemExit(len(open({str(lives)!r}).read()) < 3)
"""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "coloctl.control.daemon.watcher", str(tmp_path),
             sys.executable, "-S", "-c", script],
            stderr=full, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0 and lives.read_text() == "xxx"


def test_logs_are_bounded_while_a_supervisor_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BOUND_PERIOD_S", 0.01)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "a").mkdir()
    console = tmp_path / "a" / "console.log"
    console.write_bytes(b"x" * (5 << 20))
    script = f"""
import os, time
while os.stat({str(console)!r}).st_blocks * 512 > {4 << 20}:
    time.sleep(0.01)
"""
    assert watcher.watch(tmp_path, [sys.executable, "-S", "-c", script], lambda _: None) == 0


def test_it_costs_little(watched: Watched) -> None:
    watched.ask()
    status = Path(f"/proc/{watched.process.pid}/status").read_text()
    resident_kib = int(status.split("VmRSS:")[1].split()[0])
    assert resident_kib < 20 << 10  # bare Python has 9 MiB

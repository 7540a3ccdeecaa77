"""A real pair through the command alone: every verb as a process, as an operator types it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.smallpair import write_small_pair

from coloctl import paths, procfs
from coloctl.control.daemon.watcher import watcher_of
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

NAME = "web"
#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 60.0

Done = subprocess.CompletedProcess[str]


class Operator:
    """Types verbs about one pair; ``file`` is its pair file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def type(self, *words: str, code: int = 0) -> Done:
        done = subprocess.run(
            self.argv(*words), capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == code, (words, done)
        assert "Traceback" not in done.stderr
        return done

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "coloctl.cli.main", *map(str, words)]

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def start(self, *words: str, code: int = 0) -> Done:
        return self.type("start", str(self.file), *words, code=code)

    def view(self) -> dict[str, Any]:
        looked = subprocess.run(
            self.argv("status", NAME, "-f", "json"), capture_output=True, text=True, check=False
        )
        assert looked.returncode in (0, 3), looked
        view: dict[str, Any] = json.loads(looked.stdout)
        return view

    def node(self, role: str) -> dict[str, Any]:
        found: dict[str, Any] = next(n for n in self.view()["nodes"] if n["role"] == role)
        return found

    def until(self, true: Callable[[], object]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < give_up
            time.sleep(0.05)


def processes_of(folder: Path) -> list[int]:
    """Everything with the folder on its command line: supervisor and QEMUs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def build() -> qemu.Build:
    """The one QEMU of the matrix that can do COLO with every accelerator."""
    return qemu.provide("11.1")


@pytest.fixture
def operator(
    build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Operator]:
    """A pair file without a network; behind the test nothing of the pair is left."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    operator = Operator(write_small_pair(tmp_path / f"{NAME}.toml", build))
    try:
        yield operator
    finally:
        if paths.pair_dir(NAME).exists():
            operator.type("stop", NAME, "--force", "--yes")
        assert nothing_left(tmp_path)


def nothing_left(folder: Path) -> bool:
    state = folder / "s"
    return not processes_of(folder) and not (state.exists() and list(state.iterdir()))


def test_the_life_of_a_pair(operator: Operator, tmp_path: Path) -> None:
    started = operator.start()
    assert re.fullmatch(
        r"web is protected: the guest runs on node a, node b follows \(\d+\.\d s\)\.\n",
        started.stdout,
    )
    assert "start: taking the first checkpoint" in started.stderr

    view = operator.view()
    assert (view["protection"], view["generation"], view["exposed_s"]) == ("colo", 0, None)
    assert operator.type("status", NAME).stdout.startswith("web   ● colo for 00:00:")
    header, *rows = operator.type("status", "-f", "tsv").stdout.splitlines()
    assert [row.split("\t")[:3] for row in rows] == [
        ["web", "a", "primary"],
        ["web", "b", "secondary"],
    ]
    assert len(header.split("\t")) == len(rows[0].split("\t"))
    (listed,) = json.loads(operator.type("list", "-f", "json").stdout)["pairs"]
    assert (listed["supervisor"], listed["primary"]) == ("running", "a")
    assert operator.type("query", NAME, "is-state", "colo").stdout == "web is colo.\n"
    assert operator.type("query", NAME, "is-state", "down", "-q", code=3).stdout == ""

    assert "300 ms, it was 200 ms" in operator.type("set", NAME, "checkpoint-delay=300").stdout
    assert operator.view()["checkpoints"]["delay_ms"] == 300
    before = operator.view()["checkpoints"]["count"]
    assert operator.type("checkpoint", NAME).stdout.startswith("Checkpoint ")
    assert operator.view()["checkpoints"]["count"] > before
    assert json.loads(operator.type("qmp", NAME, "b", "--", "query-status").stdout)["running"]

    operator.type("stop", NAME, "--force", "--yes")
    assert nothing_left(tmp_path)


def test_failover_both_ways_and_protected_again(operator: Operator) -> None:
    operator.start()
    plan = operator.type("failover", NAME, "--dry-run").stdout
    assert '{"execute": "x-colo-lost-heartbeat"}' in plan and "SIGKILL" in plan
    operator.type("failover", NAME, code=2)
    assert operator.view()["protection"] == "colo"

    operator.type("pause", NAME)
    os.kill(operator.node("primary")["pid"], signal.SIGKILL)
    operator.until(lambda: operator.view()["protection"] == "failover")
    drawn = operator.type("failover", NAME, "--yes").stdout
    assert drawn.startswith("web runs on node b, which was the secondary; node a is fenced.")
    assert re.search(r"^running +\d+\.\d ms +[█▏▉▊▋▌▍▎]+ ", drawn, re.M)
    operator.type("status", NAME, code=3)
    operator.type("failover", NAME, "--yes", code=5)

    operator.start()
    timeline = json.loads(
        operator.type("failover", NAME, "--to", "b", "--yes", "-f", "json").stdout
    )
    assert (timeline["schema"], timeline["survivor"], timeline["lost"]) == (1, "b", "a")
    assert timeline["role_before"] == "primary"
    assert next(iter(timeline["steps"])) == "detected"
    assert operator.view()["generation"] == 2
    operator.type("stop", NAME, "--force", "--yes")


def test_a_guest_that_runs_alone_is_protected_by_a_second_start(operator: Operator) -> None:
    operator.start("--no-protect")
    alone = operator.node("primary")
    assert operator.view()["protection"] == "unprotected"
    operator.start("--no-protect", code=5)
    operator.type("checkpoint", NAME, code=3)
    operator.start("--no-wait")
    operator.type("wait", NAME, "--for", "colo", "--timeout", str(PATIENCE_S))
    assert operator.node("primary")["pid"] == alone["pid"]
    busy = operator.start(code=5)
    assert (
        busy.stderr == "error: Pair web already runs (colo).\nhint: `coloctl status web` shows it\n"
    )


def test_another_pair_file_with_the_same_name_is_refused(
    operator: Operator, tmp_path: Path
) -> None:
    operator.start("--no-protect")
    twin = tmp_path / "twin.toml"
    twin.write_text(operator.file.read_text())
    refused = operator.type("start", str(twin), code=5)
    assert str(operator.file) in refused.stderr


def test_a_dry_start_says_all_and_does_nothing(operator: Operator, tmp_path: Path) -> None:
    said = operator.start("--dry-run").stdout
    assert said.startswith("# node a\n")
    for words in ("-incoming defer", '"migrate-incoming"', '"migrate"', "x-blockdev-change"):
        assert words in said
    document = json.loads(operator.start("--dry-run", "-f", "json").stdout)
    assert document["dry_run"] and {step["node"] for step in document["steps"]} == {"a", "b"}
    assert nothing_left(tmp_path)


def test_a_supervisor_that_was_killed_leaves_qemu_to_be_ended_by_force(
    operator: Operator, tmp_path: Path
) -> None:
    operator.start()
    view = operator.view()
    leave_unwatched(view["supervisor_pid"])
    operator.until(lambda: view["supervisor_pid"] not in processes_of(tmp_path))

    gone = operator.type("status", NAME, "-f", "json", code=1)
    assert json.loads(gone.stderr)["error"]["code"] == "unreachable"
    assert "gone" in operator.type("list").stdout
    refused = operator.start(code=5)
    assert "still run" in refused.stderr and "stop web --force" in refused.stderr
    hint = operator.type("stop", NAME, code=1).stderr.partition("hint: ")[2]
    assert f"coloctl start {operator.file} --adopt" in hint and "stop web --force" in hint
    operator.type("stop", NAME, "--force", code=2)
    for node in view["nodes"]:
        assert Path(f"/proc/{node['pid']}").exists()

    operator.type("stop", NAME, "--force", "--yes")
    assert nothing_left(tmp_path)
    operator.type("stop", NAME, "--force", "--yes", code=4)


def test_a_stale_folder_in_which_nothing_lives_is_cleared_silently(
    operator: Operator, tmp_path: Path
) -> None:
    operator.start("--no-protect")
    view = operator.view()
    guest = operator.node("primary")["pid"]
    leave_unwatched(view["supervisor_pid"])
    os.kill(guest, signal.SIGKILL)
    operator.until(lambda: not processes_of(tmp_path))
    operator.start()
    assert operator.view()["protection"] == "colo"


@pytest.mark.parametrize("step", ["images", "primary", "secondary", "connect", "migrate"])
def test_interrupting_a_start_undoes_it(operator: Operator, tmp_path: Path, step: str) -> None:
    from coloctl.cli.views.progress import in_words

    starting = operator.begin("start", str(operator.file))
    assert starting.stderr is not None
    for line in starting.stderr:
        if line == f"start: {in_words(step)}\n":
            break
    starting.send_signal(signal.SIGINT)
    _, said = starting.communicate(timeout=PATIENCE_S)
    if starting.returncode == 0:
        pytest.skip("the start was over before it could be interrupted")
    assert starting.returncode == 130
    last = said.splitlines()[-1]
    assert last == "Interrupted; the start of web was undone and nothing of it is left."
    assert nothing_left(tmp_path)


def test_a_start_that_cannot_protect_says_so_and_keeps_its_guest(
    operator: Operator, build: qemu.Build, tmp_path: Path
) -> None:
    io = build.binary.with_name("qemu-io")
    subprocess.run([io, "-c", "write -P 7 0 64k", tmp_path / "a.qcow2"], check=True)
    (tmp_path / "scratch.raw").write_bytes(bytes(1 << 20))
    node = f"driver=raw,node-name=s0,file.driver=file,file.filename={tmp_path}/scratch.raw"
    extra = json.dumps(["-blockdev", node, "-device", "virtio-blk-pci,drive=s0"])
    text = operator.file.read_text()
    operator.file.write_text(text.replace("[[disk]]", f"extra_args = {extra}\n[[disk]]", 1))
    said = operator.start(code=3).stderr
    assert "error: The guest of web runs on node a, but it is not protected: " in said
    assert "scratch.raw" in said
    assert "\nhint: `coloctl reprotect web` tries again; " in said
    assert operator.view()["protection"] == "unprotected"
    assert operator.node("primary")["presence"] == "alive"


def test_a_start_whose_supervisor_dies_is_told_and_cleared(
    operator: Operator, tmp_path: Path
) -> None:
    starting = operator.begin("start", str(operator.file))
    assert starting.stderr is not None
    assert starting.stderr.readline().startswith("start: ")
    (watcher,) = procfs.children(starting.pid)
    (supervisor,) = procfs.children(watcher)
    leave_unwatched(supervisor)
    _, said = starting.communicate(timeout=PATIENCE_S)
    assert starting.returncode == 1
    assert "error: The supervisor of pair web was killed by signal 9" in said
    assert nothing_left(tmp_path)


def leave_unwatched(supervisor: int) -> None:
    """The supervisor is killed, and before it the watcher that would start another."""
    watcher = watcher_of(supervisor)
    assert watcher is not None
    os.kill(watcher, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (("memory =", "memroy ="), 2, "guest.memroy"),
        (('"64MiB"', '"64 parsecs"'), 2, "guest.memory"),
        (('a = "a.qcow2"', 'a = "none.qcow2"'), 2, "disk[0].image.a"),
        (('name = "web"', 'name = "../web"'), 2, "name"),
    ],
)
def test_a_wrong_pair_file_starts_nothing(
    operator: Operator, tmp_path: Path, change: tuple[str, str], code: int, said: str
) -> None:
    operator.file.write_text(operator.file.read_text().replace(*change))
    refused = operator.start(code=code)
    assert refused.stderr.startswith(f"error: {said}")
    assert "\nhint: " in refused.stderr
    assert nothing_left(tmp_path)


def test_unequal_disks_start_nothing(operator: Operator, build: qemu.Build, tmp_path: Path) -> None:
    subprocess.run([build.img, "resize", "-q", tmp_path / "b.qcow2", "32M"], check=True)
    refused = operator.start(code=1)
    assert refused.stderr.splitlines()[-2].startswith("error: ")
    assert refused.stderr.splitlines()[-1].startswith("hint: ")
    assert nothing_left(tmp_path)


def test_the_foreground_ends_the_pair_on_sigint_and_leaves_it_on_sigterm(
    operator: Operator, tmp_path: Path
) -> None:
    for number, code, left in ((signal.SIGINT, 130, 0), (signal.SIGTERM, 0, 2)):
        running = operator.begin("run", str(operator.file))
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("migrating -> colo"):
                break
        running.send_signal(number)
        if number == signal.SIGINT:
            # The firmware does not shut down: the second one ends it at once.
            for line in running.stdout:
                if line.startswith("stop: "):
                    break
            running.send_signal(number)
        running.communicate(timeout=PATIENCE_S)
        assert running.returncode == code
        assert len(processes_of(tmp_path)) == left


def test_a_stop_takes_over_from_a_sigint_that_waits_for_the_guest(
    operator: Operator, tmp_path: Path
) -> None:
    running = operator.begin("run", str(operator.file), "--no-protect")
    assert running.stdout is not None
    for begun in ("down -> unprotected", "stop: asking the guest"):
        for line in running.stdout:
            if line.startswith(begun):
                break
        if begun.startswith("down"):
            running.send_signal(signal.SIGINT)
    operator.type("stop", NAME, "--force", "--yes")
    said, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130, said
    assert nothing_left(tmp_path)


def test_a_terminal_is_asked_for_the_name(operator: Operator) -> None:
    operator.start("--no-protect")
    assert "nothing was done" in at_a_terminal(operator.argv("stop", NAME, "--force"), "wob", 5)
    assert operator.view()["protection"] == "unprotected"
    assert "web is stopped" in at_a_terminal(operator.argv("stop", NAME, "--force"), NAME, 0)


def at_a_terminal(argv: list[str], typed: str, code: int) -> str:
    """What the command wrote to its terminal, where ``typed`` answered its question."""
    here, there = pty.openpty()
    said = b""
    try:
        with subprocess.Popen(argv, stdin=there, stdout=there, stderr=there) as process:
            while process.poll() is None or select.select([here], [], [], 0)[0]:
                if select.select([here], [], [], 0.1)[0]:
                    said += os.read(here, 4096)
                    if said.endswith(b"go on: "):
                        os.write(here, typed.encode() + b"\n")
        assert process.returncode == code, said
    finally:
        os.close(here)
        os.close(there)
    return said.decode()

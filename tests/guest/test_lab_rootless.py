"""The lab without root: every command here runs as an ordinary user, in a world of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.smallpair import write_small_pair

from coloctl.lab import qemu, rootless

pytestmark = pytest.mark.guest

PROJECT = Path(__file__).parents[2]
NOBODY = 65534
LAB = f"r{os.getpid()}"

#: What the tests run: argv[1] names a function, argv[2] a lab.
ACTS = """
import os, signal, sys, threading, time
from coloctl.errors import LabError
from coloctl.lab import rootless

def again(lab):
    rootless.enter()
    print(os.getuid(), os.getpid(), os.environ["COLOCTL_STATE_DIR"], os.getcwd(), sys.stdin.read())
    rootless.enter()
    sys.exit(7)

def ending(lab):
    threading.Timer(0.2, int).start()
    rootless.enter()
    print("alone")

def crowd(lab):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    rootless.enter()

def sleep(lab):
    rootless.enter()
    print("asleep", flush=True)
    time.sleep(60)

def up(lab):
    rootless.enter(lab=lab)
    from coloctl.lab.network import Lab
    Lab.up(lab)
    rootless.hold(lab)

def use(lab):
    rootless.enter()
    from coloctl.lab.network import Lab, labs
    standing = Lab.open(lab)
    standing.link("replication").cut()
    assert standing.link("replication").state() == "cut"
    standing.link("replication").heal()
    server = standing.popen(
        [sys.executable, "-c", "import socket; s = socket.create_server(('10.66.0.2', 9000));"
         "print('ready', flush=True); s.accept()[0].sendall(b'hello')"],
        where="host-b", stdout=-1)
    server.stdout.readline()
    print(standing.run(
        [sys.executable, "-c", "import socket;"
         "print(socket.create_connection(('10.66.0.2', 9000), 5).recv(9).decode())"],
        where="host-a").stdout.strip(), *labs())
    server.wait(5)

def down(lab):
    rootless.enter(lab=lab)
    from coloctl.lab.network import Lab
    Lab(lab).down()
    rootless.release(lab)

def held(lab):
    print(*rootless.held())

def short(lab):
    rootless.enter()
    from coloctl.lab.network import Lab
    with Lab.up(lab) as standing:
        print(standing.run(["cat", "/proc/net/dev"], where="host-a").stdout)

try:
    globals()[sys.argv[1]](sys.argv[2])
except LabError as error:
    print(error.message, "hint:", error.hint, file=sys.stderr)
    sys.exit(1)
"""


class User:
    """An ordinary user with a home, and a /dev/net/tun that may be opened or not."""

    def __init__(self, home: Path, tun_mode: int = 0o666) -> None:
        self.home = home
        self.state = home / "state"
        (home / "acts.py").write_text(ACTS)
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            node = home / "tun"
            os.mknod(node, stat.S_IFCHR | tun_mode, os.makedev(10, 200))
            node.chmod(tun_mode)
            os.chown(home, NOBODY, NOBODY)
            self._prefix = [
                *("unshare", "--mount", "--propagation", "private", "sh", "-ec"),
                f"mount --bind {node} /dev/net/tun; exec setpriv --reuid={NOBODY}"
                f' --regid={NOBODY} --clear-groups "$@"',
                "sh",
            ]
        self.python = next(filter(self._can_run, (sys.executable, "/usr/bin/python3")), "")
        if not self.python:
            pytest.skip("an ordinary user here can run no Python 3.11 or later")
        first = self.run("again")
        if "Cannot make a user namespace" in first.stderr:
            pytest.skip("this system allows no unprivileged user namespaces")
        assert first.returncode == 7, first.stderr

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "COLOCTL_STATE_DIR": str(self.state),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{PROJECT}:{sysconfig.get_path('purelib')}",
        }

    def _can_run(self, python: str) -> bool:
        # setpriv still has root's rights when it starts Python, so ask whether it can start again.
        probe = (
            "import os, sys, coloctl, pyroute2;"
            "sys.exit(sys.version_info < (3, 11) or not os.access(sys.executable, os.X_OK))"
        )
        return not subprocess.run(
            [*self._prefix, python, "-c", probe],
            env=self._environment(),
            cwd=self.home,
            capture_output=True,
            check=False,
        ).returncode

    def start(self, act: str, lab: str = LAB) -> subprocess.Popen[str]:
        """The act, running."""
        return self._start(str(self.home / "acts.py"), act, lab)

    def coloctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command with these arguments, done."""
        with self._start("-m", "coloctl.cli.main", *arguments) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._prefix, self.python, *arguments],
            env=self._environment(),
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, act: str, lab: str = LAB, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """The act, done."""
        with self.start(act, lab) as process:
            out, err = process.communicate(stdin, timeout=30)
        return subprocess.CompletedProcess(act, process.returncode, out, err)

    def holders(self) -> set[int]:
        """The processes that keep this user's labs alive, by their records."""
        return {json.loads(record.read_text())["pid"] for record in self.state.glob("lab-*.json")}


@pytest.fixture
def user() -> Iterator[User]:
    yield from a_user()


def a_user(tun_mode: int = 0o666) -> Iterator[User]:
    """A user whose home and labs are gone afterwards."""
    if rootless.inside():
        pytest.skip("the whole run is in such a world, where nobody else can be an ordinary user")
    home = Path(tempfile.mkdtemp(prefix="coloctl-test-", dir="/tmp"))
    try:
        ordinary = User(home, tun_mode)
        try:
            yield ordinary
        finally:
            for name in ordinary.run("held").stdout.split():
                ordinary.run("down", name)
    finally:
        shutil.rmtree(home)


def needs_tun() -> None:
    """Skips where an ordinary user has no /dev/net/tun and the test cannot give it one."""
    if os.geteuid() != 0 and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun is closed to this user (`chmod 666 /dev/net/tun` opens it)")


def test_the_command_runs_as_root_with_its_input_exit_code_state_and_folder(user: User) -> None:
    with user.start("again") as process:
        out, err = process.communicate("typed", timeout=30)
    assert process.returncode == 7, err
    assert out.split() == ["0", str(process.pid), str(user.state), str(user.home), "typed"]


def test_a_thread_that_is_ending_is_waited_for_and_one_that_stays_is_refused(user: User) -> None:
    assert user.run("ending").stdout == "alone\n"
    refused = user.run("crowd")
    assert refused.returncode == 1
    assert refused.stderr.startswith("A user namespace can be entered only before")


def test_ctrl_c_ends_it_as_it_would_anywhere(user: User) -> None:
    with user.start("sleep") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err


def test_a_lab_within_one_command_leaves_nothing(user: User) -> None:
    needs_tun()
    done = user.run("short")
    assert done.returncode == 0, done.stderr
    assert "tap-a" in done.stdout
    assert not user.state.exists() or not list(user.state.iterdir())
    assert not list(Path("/run").glob(f"netns/{LAB}-*"))


def test_a_lab_stays_for_later_commands_and_goes_without_a_trace(user: User) -> None:
    needs_tun()
    other = f"{LAB}b"
    for name in (LAB, other):
        assert user.run("up", name).returncode == 0
    (holder,) = user.holders()
    assert user.run("held").stdout.split() == [LAB, other]
    used = user.run("use")
    assert used.stdout.split() == ["hello", LAB, other], used.stderr
    assert user.run("down", LAB).returncode == 0
    assert alive(holder)
    assert user.run("use", other).stdout.split() == ["hello", other]
    assert user.run("down", other).returncode == 0
    assert not alive(holder)
    assert list(user.state.iterdir()) == []
    assert not list(Path("/run").glob(f"netns/{LAB}*"))


def test_the_verbs_of_the_lab_find_its_world_again(user: User) -> None:
    needs_tun()
    named = ("--name", LAB)
    assert user.coloctl("lab", "down", *named).stdout == f"There was no lab {LAB}.\n"
    assert not user.state.exists()
    assert json.loads(user.coloctl("lab", "list", "-f", "json").stdout)["labs"] == []
    up = user.coloctl("lab", "up", *named)
    assert up.returncode == 0, up.stderr
    (holder,) = user.holders()
    assert user.coloctl("lab", "cut", "lan-a", *named).stdout == "lan-a is cut.\n"
    (listed,) = json.loads(user.coloctl("lab", "list", "-f", "json").stdout)["labs"]
    assert (listed["name"], listed["impaired"]) == (LAB, ["lan-a cut"])
    assert "lan-a is cut." in user.coloctl("lab", "show", *named).stdout
    assert user.coloctl("lab", "exec", *named, "client", "sh", "-c", "exit 9").returncode == 9
    assert user.coloctl("lab", "down", *named).returncode == 0
    assert not alive(holder)
    assert list(user.state.iterdir()) == []
    gone = user.coloctl("lab", "show", *named)
    assert gone.returncode == 1 and "coloctl lab up" in gone.stderr


def test_a_pair_starts_in_the_world_of_its_lab(
    user: User, qemu_builds: Callable[[str], qemu.Build]
) -> None:
    """What the quickstart types next, as an ordinary user, after `lab up`."""
    needs_tun()
    file = write_small_pair(user.home / "rootless.toml", qemu_builds("11.1"))
    text = file.read_text()
    for node, address in (("a", "10.66.0.1"), ("b", "10.66.0.2")):
        host = f'host = "netns:{LAB}-host-{node}"\naddress = "{address}"'
        text = re.sub(rf'(\[node\.{node}\]\n)address = "[^"]*"', rf"\1{host}", text)
    file.write_text(text)
    if os.geteuid() == 0:
        for made in user.home.glob("*"):
            os.chown(made, NOBODY, NOBODY)
    assert user.coloctl("lab", "up", "--name", LAB).returncode == 0
    looked = user.coloctl("doctor", str(file), "-f", "json")
    findings = json.loads(looked.stdout)["findings"]
    assert not [one for one in findings if one["severity"] == "error"], findings
    try:
        started = user.coloctl("start", str(file))
        assert started.returncode == 0, started.stderr
        assert "is protected: the guest runs on node a" in started.stdout
        view = json.loads(user.coloctl("status", "rootless", "-f", "json").stdout)
        assert view["protection"] == "colo"
    finally:
        stopped = user.coloctl("stop", "rootless", "--force", "--yes")
    assert stopped.returncode == 0, stopped.stderr
    assert user.coloctl("lab", "down", "--name", LAB).returncode == 0


def test_a_world_whose_holder_died_is_replaced(user: User) -> None:
    needs_tun()
    assert user.run("up").returncode == 0
    (holder,) = user.holders()
    os.kill(holder, signal.SIGKILL)
    end = time.monotonic() + 5
    while alive(holder) and time.monotonic() < end:
        time.sleep(0.01)
    assert user.run("held").stdout == "\n"
    gone = user.run("use")
    assert gone.returncode == 1 and "is not up" in gone.stderr
    assert user.run("up").returncode == 0
    assert user.run("use").stdout.split() == ["hello", LAB]


def test_a_record_of_a_reused_process_id_or_of_nonsense_is_not_believed(user: User) -> None:
    user.state.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(user.state, NOBODY, NOBODY)
    record = user.state / f"lab-{LAB}.json"
    for text in (f'{{"pid": {os.getpid()}, "start_time": 1}}', "{", "[]", '{"pid": "x"}'):
        record.write_text(text)
        assert user.run("again").returncode == 7
        assert user.run("held").stdout == "\n"
    assert user.run("down").returncode == 0
    assert not record.exists()


def test_a_closed_tun_device_is_one_sentence_and_a_hint() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give the test a /dev/net/tun that is closed to others")
    for closed in a_user(tun_mode=0o600):
        done = closed.run("up")
        assert done.returncode == 1
        assert done.stderr.startswith("/dev/net/tun cannot be opened by this user")
        assert "hint: `chmod 666" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False

"""A unit of systemd for each QEMU, with a real systemd as the first process of namespaces.

Method: this machine's own systemd and D-Bus in a root that overlays this machine's, with a control
group of their own; nothing that they write is seen outside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import coloctl
from coloctl.lab import rootless

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        os.geteuid() != 0 or rootless.inside(), reason="systemd as a first process needs root"
    ),
]

SYSTEMD = Path("/lib/systemd/systemd")
PATIENCE_S = 120.0
#: $1 the folder of the overlay; the rest are folders that it may not show, as other mounts.
ENTER = r"""
set -eu
home=$1; shift; root=$home/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$home/upper,workdir=$home/work" "$root"
for folder in "$@"; do mount --bind "$folder" "$root$folder"; done
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom; do
  mknod -m 666 "$root/dev/$name" c 1 "$(stat -c 0x%T "/dev/$name" | xargs printf %d)"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/dbus" "$root/run/old"
cd "$root"
pivot_root . run/old
umount -l /run/old
exec env -i container=trial PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --unit=trial.target --log-target=null
"""
#: Only the bus: no unit of this machine is started.
UNITS = {
    "trial.target": "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n",
    "dbus.socket.d/trial.conf": "[Unit]\nDefaultDependencies=no\n",
    "dbus.service.d/trial.conf": "[Unit]\nDefaultDependencies=no\n",
}
#: Starts a program as a supervisor starts a QEMU, prints its number, and ends.
SPAWN = """
import logging, sys
from pathlib import Path
from coloctl.host.launch import spawn
from coloctl.model.launch import Launch, Unit
logging.basicConfig(level=logging.WARNING)
unit = Unit("coloctl-web-a", "QEMU of node a of the pair web", 1 << 30)
program = spawn(Launch(("sleep", "3600"), unit=unit), stderr=Path("/run/qemu.log"))
print(program.identity.pid)
"""


@dataclass(frozen=True)
class Booted:
    """A systemd, seen from outside."""

    pid: int

    def run(self, *words: str, code: int | None = 0) -> str:
        """Run a command beside it, and return what it prints."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--uts",
             "--cgroup", "--root", "--wd=/", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
             *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout
        return done.stdout.strip()

    def spawn(self) -> str:
        """Start the program as a supervisor would; returns its number there."""
        found = f"import sys\nsys.path[:0] = [{str(Path(coloctl.__file__).parents[1])!r}]"
        said = self.run(sys.executable, "-P", "-c", f"{found}\n{SPAWN}")
        assert said.isdecimal(), said
        return said

    def group(self, pid: str) -> str:
        """Name the control group of a process there."""
        lines = self.run("cat", f"/proc/{pid}/cgroup").splitlines()
        return next(line for line in lines if line.startswith("0::")).removeprefix("0::")


def until(holds: Callable[[], bool]) -> None:
    """Wait for what systemd does by itself."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def groups() -> Path | None:
    """Where the machine has mounted cgroup2."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    return None


@pytest.fixture
def booted(tmp_path: Path) -> Iterator[Booted]:
    where = groups()
    if where is None or not SYSTEMD.exists() or not shutil.which("dbus-daemon"):
        pytest.skip("there is no systemd, no D-Bus or no cgroup2 to try it with")
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    for name, text in UNITS.items():
        file = tmp_path / "upper/etc/systemd/system" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    group = where / f"coloctl-t{os.getpid()}"
    group.mkdir()
    folders = {Path(coloctl.__file__).parents[1], Path(sys.prefix), Path(sys.base_prefix)}
    apart = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child",
             "--uts", "--ipc", "--net", "--cgroup")  # fmt: skip
    words = [*apart, "sh", "-c", ENTER, "sh", str(tmp_path), *map(str, sorted(folders))]
    process = subprocess.Popen(
        ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group), *words]
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: process.poll() is not None or bool(children.read_text().split()))
        if process.poll() is not None:
            pytest.skip("the filesystem of the temporary folder takes no overlay")
        there = Booted(int(children.read_text().split()[0]))
        # Before that it is a shell, and the bus that answers could be this machine's.
        until(lambda: Path(f"/proc/{there.pid}/comm").read_text() == "systemd\n")
        answers = ("busctl", "--system", "get-property", "org.freedesktop.systemd1",
                   "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
                   "Version")  # fmt: skip
        until(lambda: there.run(*answers, code=None).startswith("s "))
        yield there
    finally:
        process.kill()
        process.wait()
        until(lambda: gone(group))


def gone(group: Path) -> bool:
    """Remove a control group with those below, where no process is left in them."""
    for folder in sorted(group.rglob("*"), reverse=True):
        if folder.is_dir():
            with contextlib.suppress(OSError):
                folder.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def test_each_program_has_a_unit_that_outlives_its_starter(booted: Booted) -> None:
    first = booted.spawn()
    until(lambda: booted.group(first) == "/coloctl.slice/coloctl-web-a.scope")
    facts = "ActiveState,TasksMax,MemoryMax,MemoryAccounting,Description"
    shown = booted.run("systemctl", "show", "coloctl-web-a.scope", "--property", facts)
    assert set(shown.splitlines()) == {
        "ActiveState=active", "TasksMax=512", f"MemoryMax={1 << 30}", "MemoryAccounting=yes",
        "Description=QEMU of node a of the pair web",
    }  # fmt: skip
    second = booted.spawn()  # the name is taken as long as the one before is there
    until(lambda: booted.group(second) == f"/coloctl.slice/coloctl-web-a-{second}.scope")
    booted.run("kill", "-9", first, second)
    listed = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "coloctl-*")
    until(lambda: booted.run(*listed) == "")
    third = booted.spawn()
    until(lambda: booted.group(third) == "/coloctl.slice/coloctl-web-a.scope")

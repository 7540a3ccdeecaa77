"""What a test run leaves behind: processes, network namespaces, taps, files.

Processes carry a mark in their environment and files lie in a folder of the run, so that neither
a neighbour's QEMU nor a neighbour's files are ever taken for ours.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from coloctl.chaos.evidence.remains import processes
from coloctl.errors import LabError
from coloctl.lab import layout, machines, rootless
from coloctl.lab.machines import Machines

MARK = "COLOCTL_TEST_RUN"

#: How long what was told to go gets to be gone.
GRACE_S = 3.0

NETNS = Path("/run/netns")
DEVICES = Path("/sys/class/net")

#: Of a lab, should they ever be outside its namespaces. All others, of a virtual machine manager or
#: a VPN of this machine, are nothing of ours: they come and go while tests run.
LAB_TAPS = frozenset({*layout.TAPS.values(), *layout.SECOND_TAPS.values()})


class Begun(NamedTuple):
    """A test and when it began, in seconds since the machine booted."""

    at_s: float
    name: str


def begun(name: str) -> Begun:
    """Note that the test of that name begins now."""
    return Begun(time.clock_gettime(time.CLOCK_BOOTTIME), name)


@dataclass
class Run:
    """A test run from its begin to its end; `leaks` names what would outlive it.

    A process or a file is blamed on the one of ``tests`` in which it came to be: the check itself
    runs at the end, after a test that may have nothing to do with it.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ct-")))
    netns: Path = NETNS
    devices: Path = DEVICES
    tests: list[Begun] = field(default_factory=list)  #: in the order in which they ran

    def __post_init__(self) -> None:
        self.mark = f"{MARK}={self.folder.name}"
        self.temporary = self.folder / "tmp"
        self.state = self.folder / "state"
        self.temporary.mkdir()
        self._before = set(self._kept())

    def environment(self) -> dict[str, str]:
        """What the run and everything it starts must have in the environment."""
        name, _, value = self.mark.partition("=")
        return {
            name: value,
            "TMPDIR": str(self.temporary),
            "COLOCTL_STATE_DIR": str(self.state),
            "COLOCTL_REGISTRY_DIR": str(self.folder / "registry"),
            "COLOCTL_CONFIG_DIR": str(self.folder / "config"),
            # pytest's own folders outlive a run on purpose, for whoever looks into a failure.
            "PYTEST_DEBUG_TEMPROOT": os.environ.get("PYTEST_DEBUG_TEMPROOT")
            or str(self.folder.parent),
        }

    def leaks(self, grace_s: float = GRACE_S) -> list[str]:
        """A sentence for each thing that is still there after the grace."""
        end = time.monotonic() + grace_s
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.05)
        return left

    def sweep(self) -> None:
        """No process, no machine of a lab and no file of the run is left."""
        for name in _own_machines():
            with contextlib.suppress(LabError):
                Machines(name).down()
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    if pid in self._processes():
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        select.select([handle], [], [], GRACE_S)
                finally:
                    os.close(handle)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> list[str]:
        files = (*self.temporary.iterdir(), *(self.state.iterdir() if self.state.is_dir() else ()))
        return [
            *(
                f"process {pid} still runs: {argv}{self._blame(_started_s(pid), 'began')}"
                for pid, argv in self._processes().items()
            ),
            *(sentence for sentence in self._kept() if sentence not in self._before),
            *(
                f"{file} is still there{self._blame(_changed_s(file), 'last changed')}"
                for file in sorted(files)
            ),
        ]

    def _blame(self, moment_s: float | None, what: str) -> str:
        """Name the test that ran at ``moment_s``, in seconds since the machine booted."""
        if moment_s is None:
            return ""
        place = bisect.bisect_right(self.tests, moment_s, key=lambda test: test.at_s)
        return f" ({what} in {self.tests[place - 1].name})" if place else ""

    def _processes(self) -> dict[int, str]:
        """Living processes that were started with the mark, with their command lines."""
        return processes(mark=self.mark)

    def _kept(self) -> Iterator[str]:
        """Sentences about namespaces and taps, those of other people left out."""
        names = sorted(_names(self.netns, lambda _: True))
        if self.netns.exists() and not names:
            yield f"{self.netns} is still there, though empty"
        for name in filter(_is_ours, names):
            yield f"network namespace {name} is still there"
        for name in _own_machines():
            yield f"the machines {name} are still there"
        for name in sorted(_names(self.devices, lambda device: (device / "tun_flags").exists())):
            if name in LAB_TAPS or _is_ours(name):
                yield f"tap {name} is still there"


def _started_s(pid: int) -> float | None:
    """Answer when the process began, in seconds since the machine booted; None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The kernel rounds down to a tick: half of one more puts it behind the test's own beginning.
    return (int(fields[19]) + 0.5) / os.sysconf("SC_CLK_TCK")


def _changed_s(file: Path) -> float | None:
    """Answer when the file, or what is in the folder, last changed, as `_started_s` does."""
    with contextlib.suppress(FileNotFoundError):
        age_s = time.time() - file.lstat().st_ctime
        return time.clock_gettime(time.CLOCK_BOOTTIME) - age_s
    return None


def _names(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if wanted(entry)]
    except FileNotFoundError:
        return []


def _own_machines() -> list[str]:
    """Labs of machines of which a control group, a store or a namespace is there."""
    if os.geteuid() != 0 or rootless.inside():
        return []
    return [name for name in machines.labs() if _is_ours(name)]


def _is_ours(name: str) -> bool:
    """Say whether a namespace or a tap of that name is of this run, or of one that has ended.

    Tests name theirs t<pid of the run>-... Another living run's own end looks after its own, and
    what has another name belongs to whoever works on this machine meanwhile.
    """
    owner = re.match(r"[a-z]-?(\d+)\b", name)
    if owner is None:
        return False
    return int(owner[1]) == os.getpid() or not Path(f"/proc/{owner[1]}").exists()

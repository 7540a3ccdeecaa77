"""Hold the processes of one lab machine in a control group: count, freeze and thaw them together.

Called by `lab.machine` and `lab.machines`. cgroup2 serves wherever it is mounted, beside version 1
too; elsewhere the freezer of version 1 does.

Invariant: every process of a machine is in its group, because its first one is and groups are
inherited.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from coloctl.clock import Deadline
from coloctl.errors import LabError

_PARENT = "coloctl-machines"
#: A freeze takes milliseconds; a process in the kernel's uninterruptible sleep can delay it.
FREEZE_WAIT_S = 10.0
_LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class MachineGroup:
    """A control group of that folder; ``unified`` when it is one of cgroup2."""

    folder: Path
    unified: bool

    @classmethod
    def named(cls, name: str) -> MachineGroup:
        """Return the group of that name, which need not exist; `LabError` without cgroups."""
        mount, unified = _mounted()
        return cls(mount / _PARENT / name, unified)

    def make(self) -> None:
        """Make the group where it is missing; raises `LabError` when the system refuses that."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(
                f"The control group {self.folder} cannot be made: {error.strerror}.",
                hint="a container needs to be privileged for machines",
            ) from None

    def remove(self) -> None:
        """Remove the group, which must be empty, and the folder of all groups with the last."""
        for folder in (self.folder, self.folder.parent):
            with contextlib.suppress(OSError):  # it is gone, or others are in it
                folder.rmdir()

    @property
    def members(self) -> Path:
        """The file to which a process writes its number to join."""
        return self.folder / "cgroup.procs"

    def pids(self) -> list[int]:
        """Return the processes in the group as this process counts them; none when it is gone."""
        try:
            found = (int(word) for word in self.members.read_text().split())
            return [pid for pid in found if pid]  # 0: it is in no namespace that is seen from here
        except OSError:
            return []

    def freeze(self) -> None:
        """Stop all processes of the group; raises `LabError` when one goes on for too long."""
        self.stop()
        if not Deadline(FREEZE_WAIT_S).poll_blocking(self.frozen, _LOOK_S):
            self.thaw()
            raise LabError(f"The processes of {self.folder} do not freeze.")

    def stop(self) -> None:
        """Begin to freeze; each process stops within a millisecond or so. Raises `LabError`."""
        self._write("1", "FROZEN")

    def thaw(self) -> None:
        """Resume all processes of the group."""
        self._write("0", "THAWED")

    def frozen(self) -> bool:
        """Return whether all processes of the group stand still."""
        try:
            if self.unified:
                return "frozen 1" in (self.folder / "cgroup.events").read_text().splitlines()
            return (self.folder / "freezer.state").read_text().strip() == "FROZEN"
        except OSError:
            return False

    def _write(self, unified: str, old: str) -> None:
        name, word = ("cgroup.freeze", unified) if self.unified else ("freezer.state", old)
        try:
            (self.folder / name).write_text(word)
        except OSError as error:
            raise LabError(f"{self.folder / name} cannot be written: {error.strerror}.") from None


def _mounted() -> tuple[Path, bool]:
    """Find where cgroup2 is mounted, or else the freezer; raises `LabError` where neither is."""
    freezer = None
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            return Path(where), True
        if kind == "cgroup" and "freezer" in options.split(","):
            freezer = Path(where)
    if freezer is None:
        raise LabError(
            "Neither cgroup2 nor the freezer of cgroups is mounted here.",
            hint="mount -t cgroup2 none /sys/fs/cgroup",
        )
    return freezer, False


def names() -> list[str]:
    """Return the names of all groups of machines that are there, sorted."""
    try:
        mount, _ = _mounted()
    except LabError:
        return []
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in (mount / _PARENT).iterdir() if entry.is_dir())
    return []

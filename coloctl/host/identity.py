"""Read what a process is from its kernel: its user, program, machine, boot and pid namespace.

Called by `host.process`, `host.adopting` and `host.process_tree` where a process is recorded or
looked for again, and by `host.machine`; reads `procfs`. Invariant: no fact here comes from the
process itself. Its command line and its name are its own choice, and any local user can choose the
same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

from coloctl.procfs import boot_id, machine_id, owner

#: What the kernel adds to the path of a program whose file was replaced or removed.
_DELETED = " (deleted)"


@dataclass(frozen=True)
class Identity:
    """The identity of one process for ever: a pid may be reused, a pid with its start time may not.

    ``start_time`` is field 22 of ``/proc/PID/stat``: clock ticks since this machine booted. Both
    hold for the machine, the boot and the pid namespace in which they were read; where these are
    known they are recorded too, beside the user and the program. Those five do not take part in a
    comparison: an unrecorded value is no difference. -1 and "" stand for unknown.
    """

    pid: int
    start_time: int
    #: Real, effective and saved alike, as counted outside of a private user namespace.
    uid: int = field(default=-1, compare=False, repr=False)
    exe: str = field(default="", compare=False, repr=False)  #: path of the running program
    boot: str = field(default="", compare=False, repr=False)  #: kernel.random.boot_id
    namespace: str = field(
        default="", compare=False, repr=False
    )  #: of pids, as the kernel names it
    machine: str = field(default="", compare=False, repr=False)  #: machine-id(5)

    def to_json(self) -> dict[str, Any]:
        """Write what is known, as `from_json` reads it."""
        known = {
            "uid": self.uid,
            "exe": self.exe,
            "boot": self.boot,
            "pid-namespace": self.namespace,
            "machine": self.machine,
        }
        told = {name: value for name, value in known.items() if value not in ("", -1)}
        return {"pid": self.pid, "start-time": self.start_time, **told}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read a record; raises KeyError or ValueError where pid or start time is missing."""
        return cls(
            int(document["pid"]),
            int(document["start-time"]),
            int(document.get("uid", -1)),
            str(document.get("exe", "")),
            str(document.get("boot", "")),
            str(document.get("pid-namespace", "")),
            str(document.get("machine", "")),
        )

    def differs(self, found: Identity | None) -> str:
        """Describe what of ``found``, the process of that number now, is not as recorded; or return
        "".
        """
        if found is None:
            return "it cannot be looked at"
        if -1 not in (self.uid, found.uid) and self.uid != found.uid:
            return f"it belongs to user id {found.uid}, not {self.uid}"
        if self.exe and found.exe and self.exe != found.exe:
            return f"it runs {found.exe}, not {self.exe}"
        return ""


@cache
def pid_namespace() -> str:
    """Read the namespace in which this process counts pids; empty where it is unknown."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def executable(pid: int) -> str:
    """Read the path of the program that ``pid`` runs; empty where it is hidden or gone."""
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/exe").readlink()).removesuffix(_DELETED)
    return ""


def _outside(uid: int) -> int:
    """Translate ``uid`` to the user outside of this user namespace.

    A pair of a rootless lab is recorded by root of its namespace, and looked at by its user too.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/uid_map").read_text().splitlines():
            first, outer, count = map(int, line.split())
            if first <= uid < first + count:
                return outer + uid - first
    return uid


def traits(pid: int) -> dict[str, Any]:
    """Read what `Identity` has beside pid and start time."""
    user = owner(pid)
    return {
        "uid": -1 if user is None else _outside(user),
        "exe": executable(pid),
        "boot": boot_id(),
        "namespace": pid_namespace(),
        "machine": machine_id(),
    }

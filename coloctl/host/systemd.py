"""Give a program that was started a unit of systemd of its own, where systemd runs.

Called by `host.launch` right after the start of a QEMU; ``busctl`` asks systemd. The unit is a
scope in ``coloctl.slice``: systemd counts its processor time and memory, and may limit them. It
outlives the service or the login in which coloctl runs, and ends with its last process.

Invariant: nothing here fails a start. A program that got no unit runs on where it is, and its host
reports why (`host.base.Process.unplaced`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from coloctl.model.launch import Unit

#: Is there exactly where systemd is the first process (sd_booted(3)).
BOOTED = Path("/run/systemd/system")
SLICE = "coloctl.slice"
#: Threads and processes of a unit: a QEMU has one per virtual CPU (255 at most), 64 for its disks,
#: and some more.
TASKS_MAX = 512
#: For one call; systemd answers in milliseconds.
CALL_DEADLINE_S = 3.0

_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
_METHOD = ("org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))")


def place(pid: int, unit: Unit) -> str:
    """Move the process and its children into a scope for ``unit``; return why it got none.

    Returns "" where it has one, and where none can be had and nothing was to be limited.
    Blocks for systemd's answer, `CALL_DEADLINE_S` at most for each of two tries.
    """
    if why := _refused():
        return "" if unit.memory_max is None else f"{why}, so guest.memory_max limits nothing"
    why = _call(f"{unit.name}.scope", pid, unit)
    if "already" in why:  # the scope of the QEMU before has not been cleaned up yet
        why = _call(f"{unit.name}-{pid}.scope", pid, unit)
    return why


def _refused() -> str:
    """Return why no unit can be had here; "" where one can."""
    if not BOOTED.is_dir():
        return "systemd does not run here"
    if os.geteuid() != 0:
        return "only root gets units of systemd"
    return ""


def _call(name: str, pid: int, unit: Unit) -> str:
    """Order the scope; returns why there is none, "" where there is one."""
    busctl = shutil.which("busctl")
    if busctl is None:
        return "there is no busctl"
    words = (*_MANAGER, *_METHOD, name, "fail", *_properties(pid, unit), "0")
    limit = f"--timeout={CALL_DEADLINE_S:g}"
    try:
        done = subprocess.run(
            [busctl, "--system", limit, "call", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    last = (done.stderr.strip().splitlines() or [f"busctl ended with {done.returncode}"])[-1]
    return last.rstrip(".") if done.returncode else ""


def _properties(pid: int, unit: Unit) -> tuple[str, ...]:
    """Return the words of the array of properties, its length first."""
    pids = [str(one) for one in (pid, *_children(pid))]
    properties = [
        ("PIDs", "au", str(len(pids)), *pids),
        ("Slice", "s", SLICE),
        ("Description", "s", unit.description),
        ("CollectMode", "s", "inactive-or-failed"),
        ("CPUAccounting", "b", "true"),
        ("MemoryAccounting", "b", "true"),
        ("TasksMax", "t", str(TASKS_MAX)),
    ]
    if unit.memory_max is not None:
        properties.append(("MemoryMax", "t", str(unit.memory_max)))
    if service := _service():
        # At a shutdown units stop in reverse order: the service shuts the guest down first.
        properties.append(("Before", "as", "1", service))
    return (str(len(properties)), *(word for one in properties for word in one))


def _children(pid: int) -> Iterator[int]:
    """Find what a script that starts QEMU has started by now."""
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(word)
            yield from _children(int(word))


def _service() -> str:
    """Return the service of coloctl in which this process runs; "" where it runs in none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            name = path.rpartition("/")[2]
            if (number == "0" or controllers == "name=systemd") and name.endswith(".service"):
                return name if name.startswith("coloctl") else ""
    return ""

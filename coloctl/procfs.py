"""Find processes by what the kernel shows of them: their session, and the files that they hold.

Used by every layer: `host.process` and `host.process_tree` for the processes of a pair,
`machine.accel` for a QEMU that is measured, and faults for their targets. Every call blocks for a
few milliseconds: about 15 microseconds for each process of the machine, 35 where descriptors are
read.

Invariant: no function believes what a process wrote itself (its command line, its name, its
environment).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")
_BOOT_ID = PROC / "sys" / "kernel" / "random" / "boot_id"
_MACHINE_ID = Path("/etc/machine-id")

#: `__SO_ACCEPTCON` in the flags column of /proc/net/unix: the socket listens.
LISTENS = 0x10000

#: How often `end` looks for what was born between a look and a kill.
_ROUNDS = 50
_ROUND_S = 0.02


#: The users beside this one as which this process starts QEMUs.
_ALSO_OURS: set[int] = set()


@dataclass(frozen=True)
class ProcStat:
    """The fields of ``/proc/PID/stat`` that matter here: 3 (state), 4 (parent), 6 and 22."""

    state: str
    parent: int
    start_time: int
    session: int = 0


def read_stat(pid: int) -> ProcStat | None:
    """Read the kernel's state of ``pid``; None where it shows no such process to this user."""
    try:
        # Asked at every heartbeat: a file object would cost three times as much.
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(file, 4096).decode(errors="replace")
        finally:
            os.close(file)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # Field 2 is the command in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcStat(fields[0], int(fields[1]), int(fields[19]), int(fields[3]))


@cache
def boot_id() -> str:
    """Read the identifier of this boot of the machine; empty where the kernel does not show it."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""


@cache
def machine_id() -> str:
    """Read the identifier of this machine (machine-id(5)); empty where it has none."""
    with contextlib.suppress(OSError):
        return _MACHINE_ID.read_text().strip()
    return ""


def owner(pid: int) -> int | None:
    """Read the one user that ``pid`` runs as; None where it is gone, or has several.

    A set-uid program that another user started has that user's real id beside its own.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("Uid:"):
                ids = {int(word) for word in line.split()[1:4]}
                return ids.pop() if len(ids) == 1 else None
    return None


def ours(pid: int) -> bool:
    """Return whether ``pid`` runs as this user, or as one of `also_ours`, and no other."""
    return owner(pid) in {os.geteuid(), *_ALSO_OURS}


def also_ours(uid: int) -> None:
    """Count the processes of another user as this one's: it starts QEMUs as that user."""
    _ALSO_OURS.add(uid)


def children(pid: int) -> list[int]:
    """Read which processes ``pid`` has started and not reaped yet; none where it is gone."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def living() -> dict[int, ProcStat]:
    """Read the stat of every process that still exists; zombies are left out."""
    found = {pid: read_stat(pid) for pid in _pids()}
    return {pid: stat for pid, stat in found.items() if stat and stat.state not in "ZX"}


def holding(names: Collection[str]) -> set[int]:
    """Find the processes that hold a descriptor on one of ``names``, this one left out.

    ``names`` are links as in ``/proc/PID/fd``, such as ``socket:[4711]`` or ``pipe:[4712]``. The
    descriptors of another user's processes are hidden from all but root.
    """
    wanted = frozenset(names)
    mine = os.getpid()
    return {pid for pid in _pids() if pid != mine and any(one in wanted for one in _links(pid))}


def holding_file(files: Collection[Path]) -> set[int]:
    """Find the processes that have one of ``files`` open, by any path."""
    wanted = {key for file in files if (key := _file_key(str(file))) is not None}
    if not wanted:
        return set()
    return {pid for pid in _pids() if not wanted.isdisjoint(_open_files(pid))}


def listeners(paths: Collection[Path]) -> dict[Path, int]:
    """Find the inode of the unix socket that listens at each of ``paths``, where there is one.

    Looks in every network namespace that a process of this machine is in: a namespace lists only
    the sockets that were made in it.
    """
    return {path: _of_ours(inodes) for path, inodes in listening_at(paths).items()}


def _of_ours(inodes: Collection[int]) -> int:
    """Choose the socket that a process of this user holds, where several have the same path."""
    if len(inodes) > 1:
        for inode in sorted(inodes):
            if any(ours(pid) for pid in holding({socket_name(inode)})):
                return inode
    return min(inodes)


def listening_at(paths: Collection[Path]) -> dict[Path, set[int]]:
    """Find the inodes of all unix sockets that were bound at each of ``paths`` and listen.

    There may be several: the path is only text, and another user can have the same one in a private
    mount namespace. Which one is ours, `holding` decides.
    """
    wanted = {str(path.absolute()): path for path in paths}
    found: dict[Path, set[int]] = {}
    for inode, text in _listening():
        if text in wanted:
            found.setdefault(wanted[text], set()).add(inode)
    return found


def listening_below(folder: Path) -> set[Path]:
    """List the paths below ``folder`` at which unix sockets were bound that still listen.

    The file may be gone, and the kernel shows the path that the binder chose: any user may have
    chosen it, in a private mount namespace. Whose it is, `holding` decides.
    """
    return {Path(text) for _, text in _listening() if text.startswith(f"{folder.absolute()}/")}


def listed(inodes: Collection[int]) -> bool:
    """Return whether a socket with one of ``inodes`` still listens in any namespace."""
    wanted = frozenset(inodes)
    return any(inode in wanted for inode, _ in _listening())


def socket_name(inode: int) -> str:
    """Return the link of a descriptor on that socket."""
    return f"socket:[{inode}]"


def ticks() -> int:
    """Return the present in the unit of ``start_time``: clock ticks since this machine booted."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def end(leader: int, names: Collection[str] = ()) -> bool:
    """Kill an unreaped child of this process with its session, and the holders of ``names``.

    ``leader`` leads its session, and its number stays its own until it is reaped. Returns whether
    all of them are gone.
    """
    own = os.getsid(0)  # of a child between fork and exec, which holds all that we hold
    for _ in range(_ROUNDS):
        held = holding(names) if names else set()
        ours = {
            pid: stat
            for pid, stat in living().items()
            if (pid in held or stat.session == leader) and stat.session != own
        }
        if not ours:
            return True
        for pid, stat in ours.items():
            _kill(pid, stat)
        time.sleep(_ROUND_S)
    return False


def _kill(pid: int, seen: ProcStat) -> None:
    """Kill the process that was ``seen``, and no other that has its number by now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        pidfd = os.pidfd_open(pid)
        try:
            now = read_stat(pid)
            if now is not None and now.start_time == seen.start_time:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir(PROC) if entry.name.isdigit()]


def _links(pid: int) -> Iterator[str]:
    # Thousands are read at once: text, where a Path for each would take five times as long.
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):  # noqa: PTH208
            with contextlib.suppress(OSError):
                yield os.readlink(f"{folder}/{number}")  # noqa: PTH115


def has_open(task: str, file: Path) -> bool:
    """Return whether a task, a path below /proc, has ``file`` open, as far as this user may see."""
    key = _file_key(str(file))
    return key is not None and key in _open_files(task)


def _open_files(pid: int | str) -> Iterator[tuple[int, int]]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):  # noqa: PTH208
            if (key := _file_key(f"{folder}/{number}")) is not None:
                yield key


def _file_key(path: str) -> tuple[int, int] | None:
    """Return what identifies a file: device and inode, or the number of a block device."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return (-1, found.st_rdev) if found.st_rdev else (found.st_dev, found.st_ino)


def _listening() -> Iterator[tuple[int, str]]:
    """Yield inode and path of every listening unix socket, namespace by namespace."""
    seen: set[tuple[int, int]] = set()
    for process in ("thread-self", "self", *map(str, _pids())):
        with contextlib.suppress(OSError):
            namespace = (PROC / process / "ns" / "net").stat()
            key = (namespace.st_dev, namespace.st_ino)
            if key in seen:
                continue
            rows = (PROC / process / "net" / "unix").read_text(errors="replace").splitlines()[1:]
            seen.add(key)
            for row in rows:
                fields = row.split(maxsplit=7)
                if len(fields) == 8 and int(fields[3], 16) & LISTENS:
                    yield int(fields[6]), fields[7]

"""Run a command that needs root again in a user namespace where it is root.

Called by `pytest_plugin` and `cli.verbs.lab`; the namespace is made by `lab.userns`. `enter`
replaces the process by the same command inside a private user and mount namespace, so the terminal,
Ctrl-C and the exit code are untouched. That namespace ends with its last process; `hold` leaves one
there, whose record in the state folder lets later commands join the same namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from coloctl import paths, procfs, wholefile
from coloctl.errors import LabError
from coloctl.lab import userns
from coloctl.lab.layout import DEFAULT, check_name
from coloctl.reading import read_json

#: Set inside such a namespace, so that no process enters a second one from there.
MARK = "COLOCTL_ROOTLESS"

_HOLDER = "import signal; signal.pause()"
_END_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that keeps a user namespace alive; the start time distinguishes a reused process
    id.
    """

    pid: int
    start_time: int  #: clock ticks after boot, field 22 of /proc/PID/stat
    boot: str = ""  #: in which it was started; empty: an earlier coloctl did not note it


def inside() -> bool:
    """Return whether this process already runs in such a namespace."""
    return os.environ.get(MARK) == "1"


def needed() -> bool:
    """Return whether this process is neither root nor in a namespace where it is."""
    return os.geteuid() != 0 and not inside()


def enter(argv: Sequence[str] | None = None, *, lab: str | None = None) -> None:
    """Run the command as root of a user namespace; return only where none was needed.

    Joins the namespace that holds ``lab``, or else any lab of this user; makes a new one when there
    is none. ``argv`` is the command to run, by default this very one. State and cache stay where
    this user has them. Call it before any thread starts. Raises `LabError` with a hint when the
    system does not allow user namespaces.
    """
    if not needed():
        return
    for candidate in _records(first=lab or DEFAULT):
        _join(candidate, argv)
    environment = _environment()
    userns.found()
    _again(argv, environment)


def join(lab: str, argv: Sequence[str] | None = None) -> bool:
    """Run the command in the namespace that holds ``lab``; return False when none does.

    True only for a process that is there already, or is root. Raises `LabError` when the command
    cannot be run there.
    """
    if not needed():
        return True
    _join(_record(lab), argv)
    return False


def hold(lab: str) -> None:
    """Keep this namespace after the command, to be found by the lab's name; root needs no such
    thing.

    Labs of one namespace share its holder. Raises `LabError` when the state folder is not ours.
    """
    if not inside():
        return
    holder = _holder_of_this_world() or _spawn()
    record = _record(lab)
    paths.make_private(record.parent)
    document = {"schema": 1, "lab": lab, **asdict(holder)}
    wholefile.replace(record, (json.dumps(document) + "\n").encode(), mode=0o600)


def release(lab: str) -> None:
    """Remove the record of the lab; its namespace ends with its last lab and last process.

    Raises `LabError` when the holder will not end.
    """
    record = _record(lab)
    holder = _read(record)
    record.unlink(missing_ok=True)
    if holder is None or holder in map(_read, _records()):
        return
    with _alive(holder) as handle:
        if handle is not None:
            _end(holder, handle)


def held() -> list[str]:
    """Return the names of this user's labs whose namespace is alive, sorted."""
    return [
        record.stem.removeprefix("lab-")
        for record in sorted(_records())
        if (holder := _read(record)) is not None and _is_alive(holder)
    ]


def _record(lab: str) -> Path:
    return paths.state_dir() / f"lab-{check_name(lab)}.json"


def _records(first: str = DEFAULT) -> list[Path]:
    """Return all records, the one of that lab before the others."""
    return sorted(
        paths.state_dir().glob("lab-*.json"), key=lambda path: (path != _record(first), path)
    )


def _read(record: Path) -> Holder | None:
    """Read the record; a missing or broken one counts as none."""
    try:
        document = read_json(record.read_text())
        boot = str(document.get("boot", ""))
        return Holder(int(document["pid"]), int(document["start_time"]), boot)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # also other JSON than ours
        return None


def _join(record: Path, argv: Sequence[str] | None) -> None:
    """Join the record's namespace; return only when it is gone."""
    holder = _read(record)
    if holder is None:
        return
    environment = _environment()
    with _alive(holder) as handle:
        if handle is None:
            return
        userns.move_into(handle)
    _again(argv, environment)


def _environment() -> dict[str, str]:
    """Return the environment inside, where the user id no longer shows where the folders are."""
    return {
        **os.environ,
        MARK: "1",
        "COLOCTL_STATE_DIR": str(paths.state_dir().absolute()),
        "COLOCTL_CACHE_DIR": str(paths.cache_dir().absolute()),
        "COLOCTL_REGISTRY_DIR": str(paths.registry_dir().absolute()),
        "COLOCTL_CONFIG_DIR": str(paths.config_dir().absolute()),
    }


def _again(argv: Sequence[str] | None, environment: dict[str, str]) -> NoReturn:
    command = list(argv) if argv is not None else [sys.executable, *sys.orig_argv[1:]]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise LabError(f"Cannot run {command[0]}: {error.strerror}.") from None


def _holder_of_this_world() -> Holder | None:
    here = Path("/proc/self/ns/mnt").stat().st_ino
    for holder in map(_read, _records()):
        if holder is not None and _is_alive(holder):
            with contextlib.suppress(OSError):  # it ended this moment
                if Path(f"/proc/{holder.pid}/ns/mnt").stat().st_ino == here:
                    return holder
    return None


def _spawn() -> Holder:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOLDER, "coloctl-lab-holder"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    start_time = _start_time(process.pid)
    if start_time is None:
        raise LabError("The process that should keep the lab alive ended at once.")
    process.returncode = 0  # it stays on purpose, and is not waited for

    return Holder(process.pid, start_time, procfs.boot_id())


def _start_time(pid: int) -> int | None:
    """Return when the process started, None when it is gone or dead and not yet reaped."""
    try:
        # The command name may hold spaces and parentheses; fields count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _is_alive(holder: Holder) -> bool:
    """Return whether it is still the process that was started, of this user and in this boot."""
    if holder.boot and holder.boot != procfs.boot_id():
        return False
    return _start_time(holder.pid) == holder.start_time


@contextlib.contextmanager
def _alive(holder: Holder) -> Iterator[int | None]:
    """Open a pidfd of the holder; None when it is gone."""
    try:
        handle = os.pidfd_open(holder.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle if _is_alive(holder) else None
    finally:
        os.close(handle)


def _end(holder: Holder, handle: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)  # it only waits, there is nothing to save
    gone, _, _ = select.select([handle], [], [], _END_WAIT_S)
    if not gone:
        raise LabError(
            f"The process {holder.pid} that keeps the lab alive does not end within "
            f"{_END_WAIT_S:g} s."
        )

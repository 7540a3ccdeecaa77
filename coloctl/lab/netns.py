"""Make, remove and list named network namespaces as `ip netns` does, and work inside one.

Called by `lab.network`, `lab.link`, `lab.devices`, and by `chaos.evidence.capture` for captures.

Work inside a namespace runs on a short-lived thread that enters it and ends there: nothing is
forked, the rest of the process stays where it is, and a caller with a running event loop may use
pyroute2's synchronous calls all the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from coloctl import flocks, interrupts
from coloctl.errors import LabError
from coloctl.lab.kernel import (
    CLONE_NEWNET,
    MNT_DETACH,
    MS_BIND,
    MS_REC,
    MS_SHARED,
    NS_GET_NSTYPE,
    call,
)

T = TypeVar("T")

#: Where `ip netns` looks.
RUN = Path("/run/netns")
#: How long to wait for others; building a whole lab takes a tenth of a second, `down` up to 10 s.
LOCK_WAIT_S = 20.0

_NO_RIGHT = (
    "run as root; without root, unprivileged user namespaces must be allowed"
    " (user.max_user_namespaces above 0)"
)


def path(name: str) -> Path:
    """Return the file through which the namespace of that name is entered."""
    return RUN / name


def exists(name: str) -> bool:
    """Return whether there is a namespace of that name (a left-over empty file is not one)."""
    try:
        fd = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def names() -> list[str]:
    """List the named network namespaces, sorted."""
    try:
        found = [file.name for file in RUN.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if exists(name))


def inside(name: str, work: Callable[[], T]) -> T:
    """Return ``work()``, done in the namespace; raises what it raises, or `LabError`."""
    try:
        fd = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabError(
            f"There is no network namespace {name}.", hint="build the lab with `coloctl lab up`"
        ) from None

    def enter_and_work() -> T:
        with _rights(f"enter the network namespace {name}"):
            call("setns", fd, CLONE_NEWNET)
        return work()

    try:
        return _on_a_thread(enter_and_work)
    finally:
        os.close(fd)


def create(name: str, furnish: Callable[[], object]) -> None:
    """Create a namespace, and run ``furnish()`` in it before it gets the name.

    Raises `LabError` when the rights are missing.
    """

    def make() -> None:
        with _rights("make a network namespace"):
            call("unshare", CLONE_NEWNET)
        furnish()
        with _rights(f"name a network namespace in {RUN}"):
            os.close(os.open(path(name), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
            call("mount", b"/proc/thread-self/ns/net", _raw(path(name)), None, MS_BIND, None)

    _on_a_thread(make)


def remove(name: str) -> None:
    """Remove the namespace of that name, and its file.

    Processes that still run inside keep it alive without a name. Raises `LabError` where the kernel
    refuses it.
    """
    with _rights(f"remove the network namespace {name}"):
        while _detach(path(name)):
            pass
        path(name).unlink(missing_ok=True)


def processes(name: str) -> dict[int, str]:
    """List the processes in the namespace: process ids and their command names."""
    try:
        wanted = _identity(path(name))
    except FileNotFoundError:
        return {}
    return {
        int(entry.name): _command(int(entry.name))
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _lives_in(int(entry.name), wanted)
    }


def runs_in(pid: int, name: str) -> bool:
    """Return whether the process is alive and in that namespace."""
    return _lives_in(pid, _identity(path(name)))


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keep others from making or removing named namespaces meanwhile, `ip netns` included.

    `RUN` exists and is a shared mount on entry, as `ip netns add` makes it; on leaving it is gone
    again when nothing is in it. Raises `LabError` when the rights are missing, or when another
    process holds it for too long.
    """
    lock = _locked()
    try:
        yield
    finally:
        _tidy()
        os.close(lock)


def _locked() -> int:
    """Open and flock `RUN`; the folder may be removed while this process waits for it."""
    while True:
        with _rights(f"use {RUN}"):
            RUN.mkdir(mode=0o755, exist_ok=True)
            lock = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _flock(lock)
            if RUN.exists() and RUN.stat().st_ino == os.fstat(lock).st_ino:
                with _rights(f"mount {RUN}"):
                    _share()
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _flock(lock: int) -> None:
    if not flocks.acquire(lock, LOCK_WAIT_S):
        raise LabError(
            f"Another process has been changing {RUN} for more than {LOCK_WAIT_S:g} s.",
            hint=f"`fuser -v {RUN}` names it",
        )


def _share() -> None:
    run = _raw(RUN)
    try:
        call("mount", None, run, None, MS_SHARED | MS_REC, None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a mount yet
            raise
        call("mount", run, run, None, MS_BIND | MS_REC, None)
        call("mount", None, run, None, MS_SHARED | MS_REC, None)


def _tidy() -> None:
    if not any(RUN.iterdir()):
        with contextlib.suppress(OSError):
            call("umount2", _raw(RUN), MNT_DETACH)  # our own lock keeps it busy
            RUN.rmdir()


def _detach(target: Path) -> bool:
    try:
        call("umount2", _raw(target), MNT_DETACH)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # EINVAL: nothing is mounted there
            return False
        raise
    return True


def _identity(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def _lives_in(pid: int, wanted: tuple[int, int]) -> bool:
    try:
        return _identity(Path(f"/proc/{pid}/ns/net")) == wanted
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _on_a_thread(work: Callable[[], T]) -> T:
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="netns")
    # Ctrl-C must not leave a step running after the clean-up: `start` waits, too, until the thread
    # has begun, and one that was interrupted there went on and named its namespace afterwards.
    with interrupts.deferred():
        thread.start()
        thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _raw(file: Path) -> bytes:
    return os.fsencode(file)


@contextlib.contextmanager
def _rights(step: str) -> Iterator[None]:
    """Turn a refusal of the kernel into a `LabError` that names the ``step``."""
    try:
        yield
    except OSError as error:
        hint = _NO_RIGHT if error.errno in (errno.EPERM, errno.EACCES) else None
        raise LabError(f"Cannot {step}: {error.strerror}.", hint=hint) from None

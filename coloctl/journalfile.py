"""Lock, open and create the files of a journal, and bring them to the disk.

Called by `journal`. Invariant: no symbolic link is followed, and a file that is returned as made is
on the disk, file and folder entry.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from coloctl.errors import PairBusy, PreconditionFailed

#: How the files are opened; a symbolic link in their place is another user's.
_OWN = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def same(path: Path, fd: int) -> bool:
    """Return whether ``path`` leads to the very file that is open as ``fd``."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except OSError:
        return False


def beside(path: Path, suffix: str) -> Path:
    """Return the path of the file with that suffix beside ``path``."""
    return path.with_name(path.name + suffix)


def locked(path: Path) -> int:
    """Lock a file of its own, because rotation replaces the journal's; kept until closed.

    Raises `PairBusy` when another supervisor has the lock, `PreconditionFailed` when the file
    cannot be opened.
    """
    try:
        fd = os.open(beside(path, ".lock"), _OWN | os.O_RDWR, 0o600)
    except OSError as error:
        try:  # a lock needs no right to write
            fd = os.open(beside(path, ".lock"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise PreconditionFailed(
                f"The journal {path} cannot be opened: {error.strerror}.",
                hint="check the folder and its permissions",
            ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise PairBusy(
            f"Another supervisor has the journal {path} open.",
            hint=f"coloctl status {path.parent.name} asks it",
        ) from None
    return fd


def opened(path: Path, size: int) -> int:
    """Open the file for appending, cut to ``size`` bytes; its folder entry is on disk.

    Raises `PreconditionFailed` when that fails.
    """
    try:
        fd = os.open(path, _OWN | os.O_WRONLY | os.O_APPEND, 0o600)
        os.ftruncate(fd, size)
        os.fsync(fd)
        sync_folder(path.parent)
    except OSError as error:
        raise PreconditionFailed(
            f"The journal {path} cannot be opened: {error.strerror}.",
            hint="check the folder and its permissions",
        ) from None
    return fd


def create(path: Path, data: bytes) -> int:
    """Create a file open for appending that holds ``data``, on disk."""
    fd = os.open(path, _OWN | os.O_WRONLY | os.O_APPEND | os.O_TRUNC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, in as many calls as it takes."""
    while data:
        data = data[os.write(fd, data) :]


def sync_folder(folder: Path) -> None:
    """Flush the entries of ``folder`` to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

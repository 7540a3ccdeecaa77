"""Replace files so that they are complete and on the disk under their name, and read them whole.

Called by `host.blocking`, `ha.arbiter`, `supervisor.history` and `supervisor.acts.durable`.
Invariant: what is written here outlives a power failure: companion files of images, the registry,
claims and histories.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from coloctl import wholefile
from coloctl.errors import PreconditionFailed


def replace(
    path: Path,
    content: bytes,
    *,
    make_folder: bool = False,
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Replace ``path`` by a file that holds ``content``, on disk before this returns.

    Other readers see the old file or the new one, never half of one, also after a power failure.
    ``make_folder`` makes its folder where it is missing. ``wanted`` is asked last whether the file
    shall still be replaced. Blocks for the disk. Raises `PreconditionFailed`; the old file stays as
    it is then.
    """

    def settle(fd: int) -> None:
        os.fsync(fd)
        if not wanted():
            raise PreconditionFailed(f"{path} was not written: its disk answered too late.")

    try:
        if make_folder:
            _make(path.parent)
        wholefile.replace(path, content, before=settle)
        _sync_folder(path.parent)
    except OSError as error:
        raise PreconditionFailed(
            f"{path} cannot be written: {error.strerror}.",
            hint="free some space, or check the folder and its permissions",
        ) from None


def read(path: Path, limit: int) -> bytes | None:
    """Read the whole file at ``path``; None where there is none.

    Raises `PreconditionFailed` for every other case: no right, a disk that fails, more than
    ``limit`` bytes, or not a regular file, which is not opened. Blocks for the disk.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PreconditionFailed(f"{path} cannot be read: it is no file.")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            content = _read_all(fd, limit + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        if path.is_symlink():
            raise PreconditionFailed(f"{path} cannot be read: its link leads nowhere.") from None
        return None
    except OSError as error:
        raise PreconditionFailed(
            f"{path} cannot be read: {error.strerror}.", hint="check the file and its permissions"
        ) from None
    if len(content) > limit:
        raise PreconditionFailed(f"{path} cannot be read: it is larger than {limit} bytes.")
    return content


def _read_all(fd: int, most: int) -> bytes:
    content = b""
    while len(content) < most and (piece := os.read(fd, most - len(content))):
        content += piece
    return content


def _make(folder: Path) -> None:
    """Make ``folder`` and those above it, with their names on disk."""
    if folder.is_dir():
        return
    _make(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Files that are complete and on the disk under their name, or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

from coloctl.errors import PreconditionFailed


def replace(path: Path, content: bytes) -> None:
    """``path`` holds ``content``, and so it does after a power failure; other readers see the old
    file or the new one, never half of one.

    Two writers at once must be kept apart by whoever calls. Blocks for the disk. Raises
    `PreconditionFailed`; the old file is as it was then.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _fill(fd, content)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        fresh.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise PreconditionFailed(
            f"{path} cannot be written: {error.strerror}.",
            hint="free some space, or check the folder and its permissions",
        ) from None


def _fill(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]
    os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Read, write and look at the files of this machine: the part of `LocalHost` named `Files`.

`host.local` inherits from it, and `host.console` reads with it; it calls `host.durable` and
`host.disk` by `host.blocking`. Network namespaces of one machine share its files. Invariant: no
call that a disk may hold up runs in the event loop, except a read of a log, which is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from coloctl import bounded, flocks, paths, probe_cache, wholefile
from coloctl.errors import PreconditionFailed
from coloctl.host import account, blocking, disk, durable, locks, ownership
from coloctl.host.process import tail
from coloctl.host.records import LogPiece
from coloctl.host.scratch import MemoryFile
from coloctl.model.disk import DiskIdentity
from coloctl.model.launch import Account
from coloctl.regular import open_regular

#: A file that is exchanged is a register of some hundred bytes.
EXCHANGED_BYTES = 65536

#: An exchange holds its lock for one write to the disk. Seconds.
LOCK_DEADLINE_S = 5.0


class LocalFiles:
    """The part of `Host` named `Files`."""

    async def identify(self, path: Path) -> DiskIdentity:
        """See `Files.identify`."""
        return await blocking.aside(lambda: disk.identify(path))

    async def image_user(self, image: Path) -> str | None:
        """See `Host.image_user`."""
        return await asyncio.to_thread(locks.user_of, image)

    async def read_file(self, path: Path, limit: int) -> bytes | None:
        """See `Files.read_file`."""
        return await blocking.aside(lambda: durable.read(path, limit))

    async def write_durably(self, path: Path, content: bytes, *, make_folder: bool = False) -> None:
        """See `Files.write_durably`."""
        await blocking.replace(path, content, make_folder=make_folder)

    async def exchange(self, path: Path, was: bytes | None, content: bytes) -> bool:
        """See `Files.exchange`."""
        return await blocking.aside(lambda: _exchange(path, was, content))

    async def put(self, path: Path, content: bytes, mode: int) -> None:
        """See `Files.put`."""
        await blocking.aside(lambda: _put(path, content, mode))

    async def scratch(self) -> MemoryFile:
        """See `Files.scratch`."""
        return MemoryFile()

    async def read_tail(self, path: Path, lines: int = 20) -> str:
        """See `Files.read_tail`."""
        with contextlib.suppress(OSError):
            return tail(path, lines)
        return ""

    async def read_log(self, path: Path, offset: int, most: int) -> LogPiece:
        """See `Files.read_log`."""
        return read_log(path, offset, most)

    async def which(self, program: str) -> Path | None:
        """See `Files.which`."""
        found = shutil.which(program)
        return None if found is None else Path(found)

    async def usable(self, path: Path, mode: int) -> str:
        """See `Files.usable`."""
        return await blocking.aside(lambda: _unusable(path, mode))

    async def account(self, user: str) -> Account | None:
        """See `Files.account`."""
        return await asyncio.to_thread(account.find, user)

    async def fingerprint(self, binary: Path) -> tuple[str, ...]:
        """See `Files.fingerprint`."""
        return probe_cache.identity(binary)

    async def make_private(self, folder: Path) -> None:
        """See `Files.make_private`."""
        ownership.close(folder)
        paths.make_private(folder)

    async def sweep(self, folder: Path, *, logs: bool = False) -> None:
        """See `Files.sweep`."""
        await asyncio.to_thread(_sweep, folder, logs=logs)

    @asynccontextmanager
    async def workspace(self, prefix: str) -> AsyncIterator[Path]:
        """See `Files.workspace`; raises `PreconditionFailed`."""
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix))
        except OSError as error:
            raise PreconditionFailed(
                f"No folder can be made in {tempfile.gettempdir()}: {error.strerror}."
            ) from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def keep_bounded(self, paths: Collection[Path]) -> None:
        """See `Files.keep_bounded`."""
        bounded.bound_all(paths)


def read_log(path: Path, offset: int, most: int) -> LogPiece:
    """Read a piece of a log, as `Files.read_log` does."""
    try:
        fd = open_regular(path)
    except OSError:
        return LogPiece(0, b"", 0)
    try:
        size = os.fstat(fd).st_size
        if offset == size:
            return LogPiece(size, b"", size)
        begin = 0 if offset > size else _data_from(fd, offset, size)
        return LogPiece(begin, os.pread(fd, most, begin), size)
    finally:
        os.close(fd)


def _data_from(fd: int, offset: int, size: int) -> int:
    """Return the offset of the first byte at or after ``offset`` that is in no hole."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:  # the hole reaches the end, or the filesystem cannot report holes
        return size if error.errno == errno.ENXIO else offset


def _put(path: Path, content: bytes, mode: int) -> None:
    paths.make_private(path.parent)

    def exactly(fd: int) -> None:
        os.fchmod(fd, mode | readers)

    try:
        readers = ownership.readers(path.parent)
        wholefile.replace(path, content, mode=0o600, before=exactly)
    except OSError as error:
        raise PreconditionFailed(
            f"{path} cannot be written: {error.strerror}.",
            hint="free some space, or check the folder and its permissions",
        ) from None


def _exchange(path: Path, was: bytes | None, content: bytes) -> bool:
    lock = path.with_name(path.name + ".lock")
    how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(lock, how, 0o600)
    except OSError as error:
        raise PreconditionFailed(
            f"{lock} cannot be locked: {error.strerror}.", hint="check the folder"
        ) from None
    try:
        if os.fstat(fd).st_uid != os.geteuid() or not flocks.acquire(fd, LOCK_DEADLINE_S):
            raise PreconditionFailed(
                f"Another process has held the lock of {path} for {LOCK_DEADLINE_S:g} s,"
                " or it belongs to another user."
            )
        if durable.read(path, EXCHANGED_BYTES) != was:
            return False
        durable.replace(path, content)
        return True
    finally:
        os.close(fd)


def _unusable(path: Path, mode: int) -> str:
    """Return why ``path`` cannot be used so, "" where it can."""
    try:
        status = path.stat()
        fixed = bool(os.statvfs(path).f_flag & os.ST_RDONLY) and not _is_device(status)
    except OSError as error:
        return error.strerror or "it cannot be looked at"
    if os.access(path, mode):
        return ""
    return os.strerror(errno.EROFS if fixed and mode & os.W_OK else errno.EACCES)


def _is_device(status: os.stat_result) -> bool:
    """Return whether it is a device, which can be written to on a filesystem that cannot."""
    return stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)


def _sweep(folder: Path, *, logs: bool) -> None:
    ownership.take_back(folder)
    ownership.take_all_back(folder)
    if logs:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.glob("*"):
        if path.suffix != ".log":
            with contextlib.suppress(OSError):  # read-only: the survivor matters more
                if path.is_dir() and not path.is_symlink():  # credentials (`colo.tls`)
                    shutil.rmtree(path)
                else:
                    path.unlink()

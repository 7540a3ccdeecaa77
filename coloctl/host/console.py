"""Read what a guest writes to its serial console, from the moment at which it last began to boot.

QEMU has no event for it, so `vm` reads the file while it waits; `colo.launch` opens it. The file is
bounded (`bounded`): its beginning may be gone, and what is kept stays at its offset.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: How often a console is read while it is waited for, seconds.
PERIOD_S = 0.1
#: How much is read at once, bytes.
CHUNK = 1 << 20


class Console:
    """One console file, which may not exist yet; the guest's output is appended to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._boots_from: int | None = None
        self._text, self._searched, self._found = "", 0, False

    @property
    def boots_from(self) -> int | None:
        """The offset at which the present boot begins; None: no boot is under way."""
        return self._boots_from

    @boots_from.setter
    def boots_from(self, offset: int | None) -> None:
        self._boots_from = offset
        self._text, self._searched, self._found = "", 0, False

    def size(self) -> int:
        """Return the offset at which the next byte is written, 0 for a file that does not exist."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def read(self, offset: int, most: int = CHUNK) -> tuple[int, bytes]:
        """Read up to ``most`` bytes from ``offset`` on; returns where they begin, and the bytes.

        They begin later than ``offset`` where the bytes there are not kept any more, and at 0 where
        the file had to be emptied. At the end of the file, where no more was written, they are
        empty.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0, b""
        try:
            size = os.fstat(fd).st_size
            if offset >= size:
                return (size, b"") if offset == size else (0, os.pread(fd, most, 0))
            begin = _data_from(fd, offset, size)
            return begin, os.pread(fd, most, begin)
        finally:
            os.close(fd)

    def says(self, text: str) -> bool:
        """Return whether the guest has written ``text`` since it began to boot.

        Every byte is looked at once. Once seen, a text counts as written until the next boot, also
        when the place where it stood is not kept any more.
        """
        if self._boots_from is None:
            return False
        if text != self._text:
            self._text, self._searched, self._found = text, self._boots_from, False
        wanted = text.encode()
        while not self._found:
            from_here = max(self._boots_from, self._searched - len(wanted) + 1)
            if self.size() < self._searched:  # it was emptied: all of it is new
                from_here = self._boots_from = self._searched = 0
            begin, data = self.read(from_here)
            self._found = wanted in data
            if begin + len(data) <= self._searched:
                break
            self._searched = begin + len(data)
        return self._found


def _data_from(fd: int, offset: int, size: int) -> int:
    """Return the offset of the first byte at or after ``offset`` that is in no hole."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:  # the hole reaches the end, or the filesystem cannot tell
        return size if error.errno == errno.ENXIO else offset

"""Read what a guest writes to its serial console, from the moment at which it last began to boot.

QEMU has no event for it, so `vm` reads the file while it waits; `colo.launch` opens it. The file is
bounded (`bounded`): its beginning may be gone, and what is kept stays at its offset.

Invariant: every byte is read from the host on which the guest runs, and looked at once.
"""

from __future__ import annotations

from pathlib import Path

from coloctl.host.base import Host
from coloctl.host.records import LogPiece

#: How often a console is read while it is waited for, seconds.
PERIOD_S = 0.1
#: How much is read at once, bytes.
CHUNK = 1 << 20


class GuestConsole:
    """The console of a guest on ``host``; it may not exist yet, and output is appended to it."""

    def __init__(self, host: Host, path: Path) -> None:
        self.host, self.path = host, path
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

    async def size(self) -> int:
        """Return the offset at which the next byte is written, 0 for a file that does not exist."""
        return (await self.host.read_log(self.path, 0, 0)).size

    async def read(self, offset: int, most: int = CHUNK) -> LogPiece:
        """Read up to ``most`` bytes from ``offset`` on, as `Files.read_log`."""
        return await self.host.read_log(self.path, offset, most)

    async def says(self, text: str) -> bool:
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
            from_here = max(self._boots_from or 0, self._searched - len(wanted) + 1)
            piece = await self.read(from_here)
            if piece.size < self._searched:  # it was emptied: all of it is new
                self._boots_from = self._searched = 0
                continue
            self._found = wanted in piece.data
            if piece.begin + len(piece.data) <= self._searched:
                break
            self._searched = piece.begin + len(piece.data)
        return self._found

"""What a guest writes to its serial console, from the moment on at which it last began to boot.

QEMU has no event for it, so the file is read while somebody waits.
"""

from __future__ import annotations

from pathlib import Path

#: How often a console is read while it is waited for, seconds.
PERIOD_S = 0.1


class Console:
    """One console file, which may not be there yet and only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Where the present boot begins in the file; None: nobody saw one begin that has not ended.
        self.boots_from: int | None = None

    def size(self) -> int:
        """How many bytes were written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def says(self, text: str) -> bool:
        """The guest has written ``text`` since it began to boot."""
        if self.boots_from is None or not self.path.exists():
            return False
        with self.path.open("rb") as written:
            written.seek(self.boots_from)
            return text in written.read().decode(errors="replace")

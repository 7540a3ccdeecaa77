"""Hold memory that a QEMU on this host writes into and that is digested here, page by page.

Made by `host.local_files` for `colo.pages`; `host.agent.work_files` holds it for a client.
Invariant: what was written there has no name in any filesystem, holds at most what was asked for,
and is empty once `close` has returned.
"""

from __future__ import annotations

import asyncio
import hashlib
import os

from coloctl.errors import PreconditionFailed

#: Bytes of a digest. With a key that the guest does not know, two different pages are taken for
#: equal once in 2^128.
DIGEST = 16


class MemoryFile:
    """A file in memory, without a name; implements `host.watching.Scratch`."""

    def __init__(self) -> None:
        """Make the file; raises `PreconditionFailed` when the kernel does not."""
        try:
            self._fd = os.memfd_create("coloctl-scratch")
        except OSError as error:
            raise PreconditionFailed(f"No memory file can be made: {error.strerror}.") from error

    def fileno(self) -> int:
        """Return the descriptor, which stays this object's."""
        return self._fd

    async def digests(self, length: int, page: int, key: bytes) -> bytes:
        """Digest each page of the first ``length`` bytes, one digest after the other.

        Raises `PreconditionFailed` where fewer bytes were written.
        """
        data = os.pread(self._fd, length, 0)
        if len(data) != length:
            raise PreconditionFailed(f"QEMU wrote {len(data)} bytes of its memory, not {length}.")
        return await asyncio.to_thread(_digests, data, page, key)

    def close(self) -> None:
        """Empty the file and close it; a copy that QEMU still holds is empty too."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _digests(data: bytes, page: int, key: bytes) -> bytes:
    zeros = bytes(page)
    of_zeros = _digest(zeros, key)  # most pages of most guests
    pages = (data[at : at + page] for at in range(0, len(data), page))
    return b"".join(of_zeros if one == zeros else _digest(one, key) for one in pages)


def _digest(data: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST, key=key).digest()

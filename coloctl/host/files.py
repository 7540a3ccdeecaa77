"""Define what a host offers about the files and disks on it: a part of `Host`.

`host.base` includes it, and `host.local_files` implements it for this machine. Folders of pairs,
logs, consoles, the registry of disks (`colo.registry`), companion files of images and claims use
it, wherever the host is. Invariant: each path is one of the host's own machine.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from coloctl.host.records import LogPiece
from coloctl.host.watching import Scratch
from coloctl.model.disk import DiskIdentity
from coloctl.model.launch import Account


class Files(Protocol):
    """Files and disks of one host."""

    async def identify(self, path: Path) -> DiskIdentity:
        """Find out the lasting identity of the disk at ``path``, whether it exists or not.

        Raises `PreconditionFailed` where it cannot be looked at, or is not a disk.
        """
        ...

    async def read_file(self, path: Path, limit: int) -> bytes | None:
        """Read the whole file at ``path``, None where there is none.

        Raises `PreconditionFailed` where it cannot be read, or has more than ``limit`` bytes.
        """
        ...

    async def write_durably(self, path: Path, content: bytes, *, make_folder: bool = False) -> None:
        """Replace ``path`` by a file that holds ``content``, on the disk under its name.

        ``make_folder`` makes its folder where it is missing. Raises `PreconditionFailed`; the file
        stays as it is then. Cancelled, it is one or the other.
        """
        ...

    async def exchange(self, path: Path, was: bytes | None, content: bytes) -> bool:
        """Replace ``path`` durably if it holds ``was`` (None: is not there); False: it does not.

        Under a lock of its own, so of two exchanges at once only one succeeds. Raises
        `PreconditionFailed`.
        """
        ...

    async def put(self, path: Path, content: bytes, mode: int) -> None:
        """Write ``path`` as a whole, with ``mode``, making its folder; not durably.

        Raises `PreconditionFailed`; the file stays as it is then.
        """
        ...

    async def scratch(self) -> Scratch:
        """Make memory that a QEMU on this host writes into; the caller closes it.

        Raises `PreconditionFailed`.
        """
        ...

    async def read_tail(self, path: Path, lines: int = 20) -> str:
        """Read the last ``lines`` lines of a log (at most 64 KiB of it); "" where there is none."""
        ...

    async def read_log(self, path: Path, offset: int, most: int) -> LogPiece:
        """Read up to ``most`` bytes of a log from ``offset`` on; a missing file is an empty one."""
        ...

    async def which(self, program: str) -> Path | None:
        """Find the program of that name, or at that path; None where it cannot be run."""
        ...

    async def usable(self, path: Path, mode: int) -> str:
        """Return why ``path`` cannot be used as ``mode`` says (`os.R_OK`, ..), "" where it can."""
        ...

    async def account(self, user: str) -> Account | None:
        """Find the user of that name or number, as which a QEMU can be started.

        None: there is none. Raises `PreconditionFailed` for one that shares its group.
        """
        ...

    async def fingerprint(self, binary: Path) -> tuple[str, ...]:
        """Describe what makes this binary another one when it changes (`probe_cache.identity`)."""
        ...

    async def make_private(self, folder: Path) -> None:
        """Make ``folder`` for this user alone where it is missing; raises `PreconditionFailed`."""
        ...

    async def sweep(self, folder: Path, *, logs: bool = False) -> None:
        """Remove all in ``folder`` but its logs; with ``logs``, the folder as a whole.

        The files that were lent to the QEMU in it get their former owners back.
        What cannot be removed is left.
        """
        ...

    def workspace(self, prefix: str) -> AbstractAsyncContextManager[Path]:
        """Make a folder for this user alone, which is removed when the context ends.

        It lies in the folder for temporary files, or where an absolute ``prefix`` says.
        Raises `PreconditionFailed`.
        """
        ...

    async def keep_bounded(self, paths: Collection[Path]) -> None:
        """Free the beginning of each of these logs that has grown too long (`bounded`)."""
        ...

"""Define what a host offers about the files and disks on it: the durable part of `Host`.

`host.base` includes it. The registry of disks (`colo.registry`), companion files of images and
claims use it, wherever the host is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from coloctl.host.scratch import Scratch
from coloctl.model.disk import DiskIdentity


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

    def scratch(self) -> Scratch:
        """Make memory that a QEMU on this host writes into; the caller closes it.

        Raises `PreconditionFailed`.
        """
        ...

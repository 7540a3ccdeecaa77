"""Read and write files of another machine through its agent: the part of `Host` named `Files`.

`host.remote.host` inherits from it. Invariant: each path is one of that machine; none is looked at
here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from coloctl.host.agent.work_files import FileWork
from coloctl.host.records import LogPiece
from coloctl.host.remote.contact import AgentContact
from coloctl.host.remote.watches import RemoteFolder, RemoteScratch
from coloctl.host.wire.token import Tokens
from coloctl.model.disk import DiskIdentity
from coloctl.model.launch import Account

#: A disk may take as long as this for a file before the agent gives the request up.
DISK_WAIT_S = 30.0


class RemoteFiles:
    """The part of `Host` about files; every method raises `HostOutOfReach`."""

    _contact: AgentContact
    _tokens: Tokens

    async def identify(self, path: Path) -> DiskIdentity:
        """See `Files.identify`."""
        return await self._contact.call(FileWork.identify, DISK_WAIT_S, path=path)

    async def read_file(self, path: Path, limit: int) -> bytes | None:
        """See `Files.read_file`."""
        return await self._contact.call(FileWork.read_file, DISK_WAIT_S, path=path, limit=limit)

    async def write_durably(self, path: Path, content: bytes, *, make_folder: bool = False) -> None:
        """See `Files.write_durably`."""
        await self._contact.call(
            FileWork.write_durably,
            DISK_WAIT_S,
            path=path,
            content=content,
            make_folder=make_folder,
        )

    async def put(self, path: Path, content: bytes, mode: int) -> None:
        """See `Files.put`."""
        await self._contact.call(FileWork.put, DISK_WAIT_S, path=path, content=content, mode=mode)

    async def exchange(self, path: Path, was: bytes | None, content: bytes) -> bool:
        """See `Files.exchange`."""
        return await self._contact.call(
            FileWork.exchange, DISK_WAIT_S, path=path, was=was, content=content
        )

    async def scratch(self) -> RemoteScratch:
        """See `Files.scratch`."""
        hold = await self._contact.call(FileWork.scratch, DISK_WAIT_S)
        return RemoteScratch(self._contact, hold, self._tokens.make(hold))

    async def read_tail(self, path: Path, lines: int = 20) -> str:
        """See `Files.read_tail`."""
        return await self._contact.call(FileWork.read_tail, DISK_WAIT_S, path=path, lines=lines)

    async def read_log(self, path: Path, offset: int, most: int) -> LogPiece:
        """See `Files.read_log`."""
        return await self._contact.call(
            FileWork.read_log, DISK_WAIT_S, path=path, offset=offset, most=most
        )

    async def which(self, program: str) -> Path | None:
        """See `Files.which`."""
        return await self._contact.call(FileWork.which, DISK_WAIT_S, program=program)

    async def usable(self, path: Path, mode: int) -> str:
        """See `Files.usable`."""
        return await self._contact.call(FileWork.usable, DISK_WAIT_S, path=path, mode=mode)

    async def account(self, user: str) -> Account | None:
        """See `Files.account`."""
        return await self._contact.call(FileWork.account, DISK_WAIT_S, user=user)

    async def fingerprint(self, binary: Path) -> tuple[str, ...]:
        """See `Files.fingerprint`."""
        return await self._contact.call(FileWork.fingerprint, DISK_WAIT_S, binary=binary)

    async def make_private(self, folder: Path) -> None:
        """See `Files.make_private`."""
        await self._contact.call(FileWork.make_private, DISK_WAIT_S, folder=folder)

    async def sweep(self, folder: Path, *, logs: bool = False) -> None:
        """See `Files.sweep`."""
        await self._contact.call(FileWork.sweep, DISK_WAIT_S, folder=folder, logs=logs)

    @asynccontextmanager
    async def workspace(self, prefix: str) -> AsyncIterator[Path]:
        """See `Files.workspace`."""
        handle = await self._contact.call(FileWork.workspace, DISK_WAIT_S, prefix=prefix)
        folder = RemoteFolder(self._contact, handle.hold)
        try:
            yield handle.path
        finally:
            folder.close()

    async def keep_bounded(self, paths: Collection[Path]) -> None:
        """See `Files.keep_bounded`."""
        await self._contact.call(FileWork.keep_bounded, DISK_WAIT_S, paths=tuple(paths))

    async def image_user(self, image: Path) -> str | None:
        """See `Host.image_user`."""
        return await self._contact.call(FileWork.image_user, DISK_WAIT_S, image=image)

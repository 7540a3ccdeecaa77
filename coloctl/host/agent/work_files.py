"""Define the operations of an agent on the files, folders and disks of its machine.

Listed by `host.agent.work`; each calls the method of `host.local_files` that bears its name.
`host.remote` asks for them at the other end.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from coloctl.host.agent.handles import FolderHandle
from coloctl.host.agent.holds import Holds
from coloctl.host.local import LocalHost
from coloctl.host.records import LogPiece
from coloctl.host.scratch import MemoryFile
from coloctl.model.disk import DiskIdentity
from coloctl.model.launch import Account


class FileWork:
    """The operations on files; a part of `host.agent.session.AgentSession`."""

    host: LocalHost
    holds: Holds

    async def identify(self, path: Path) -> DiskIdentity:
        """Find the lasting identity of a disk, as `Host.identify` does."""
        return await self.host.identify(path)

    async def read_file(self, path: Path, limit: int) -> bytes | None:
        """Read a whole file, as `Host.read_file` does."""
        return await self.host.read_file(path, limit)

    async def write_durably(self, path: Path, content: bytes, make_folder: bool) -> None:
        """Replace a file durably, as `Host.write_durably` does."""
        await self.host.write_durably(path, content, make_folder=make_folder)

    async def put(self, path: Path, content: bytes, mode: int) -> None:
        """Write a whole file, as `Host.put` does."""
        await self.host.put(path, content, mode)

    async def exchange(self, path: Path, was: bytes | None, content: bytes) -> bool:
        """Compare and replace a file durably, as `Host.exchange` does."""
        return await self.host.exchange(path, was, content)

    async def scratch(self) -> int:
        """Make memory for a QEMU, as `Host.scratch` does; returns its hold."""
        made = await self.host.scratch()
        return self.holds.add(made, made.close)

    async def digests(self, hold: int, length: int, page: int, key: bytes) -> bytes:
        """Digest the pages that were written into a scratch, as `Scratch.digests` does."""
        return await self.holds.find(hold, MemoryFile).digests(length, page, key)

    async def read_tail(self, path: Path, lines: int) -> str:
        """Read the end of a log, as `Host.read_tail` does."""
        return await self.host.read_tail(path, lines)

    async def read_log(self, path: Path, offset: int, most: int) -> LogPiece:
        """Read a piece of a log, as `Host.read_log` does."""
        return await self.host.read_log(path, offset, most)

    async def which(self, program: str) -> Path | None:
        """Find a program, as `Host.which` does."""
        return await self.host.which(program)

    async def usable(self, path: Path, mode: int) -> str:
        """Find out why a file cannot be used, as `Host.usable` does; "" where it can."""
        return await self.host.usable(path, mode)

    async def account(self, user: str) -> Account | None:
        """Find a user for a QEMU, as `Host.account` does."""
        return await self.host.account(user)

    async def fingerprint(self, binary: Path) -> tuple[str, ...]:
        """Describe a binary, as `Host.fingerprint` does."""
        return await self.host.fingerprint(binary)

    async def make_private(self, folder: Path) -> None:
        """Make a private folder, as `Host.make_private` does."""
        await self.host.make_private(folder)

    async def sweep(self, folder: Path, logs: bool) -> None:
        """Empty a node's folder, as `Host.sweep` does."""
        await self.host.sweep(folder, logs=logs)

    async def workspace(self, prefix: str) -> FolderHandle:
        """Make a folder as `Host.workspace` does; its release removes it with its content."""
        async with AsyncExitStack() as stack:
            path = await stack.enter_async_context(self.host.workspace(prefix))
            kept = stack.pop_all()
        return FolderHandle(self.holds.add(path, kept.aclose), path)

    async def keep_bounded(self, paths: tuple[Path, ...]) -> None:
        """Bound logs while this session lasts, as `Host.keep_bounded` does."""
        await self.host.keep_bounded(paths)

    async def image_user(self, image: Path) -> str | None:
        """Find the program that uses an image, as `Host.image_user` does."""
        return await self.host.image_user(image)

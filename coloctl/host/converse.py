"""Exchange lines of text with a program, over the socket that is its stdin and stdout.

Called by `host.local`, which implements `Host.converse`; `host.launch` starts the program.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from coloctl.errors import DeadlineMissed, Unreachable
from coloctl.host.launch import ConversingProgram

#: The longest line that is understood, bytes. What goes both ways has some thousands.
LONGEST = 1024 * 1024
#: Of what a program complains, this much is quoted.
COMPLAINT = 64 * 1024


class TextConversation:
    """The conversation with one program; implements `host.watching.Conversation`."""

    def __init__(
        self, program: ConversingProgram, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._program, self._reader, self._writer = program, reader, writer
        self._name = os.path.basename(program.process.argv[0])  # noqa: PTH119  # text, no path

    async def say(self, line: str, deadline_s: float) -> None:
        """See `Conversation.say`; raises `DeadlineMissed`, and `Unreachable` once it has ended."""
        try:
            async with asyncio.timeout(deadline_s):
                self._writer.write(line.encode() + b"\n")
                await self._writer.drain()
        except TimeoutError:
            raise DeadlineMissed(f"{self._name} did not listen for {deadline_s:g} s.") from None
        except OSError:
            raise Unreachable(f"{self._name} has ended.") from None

    async def hear(self, deadline_s: float) -> str | None:
        """See `Conversation.hear`; raises `DeadlineMissed`. None when the program has ended."""
        try:
            async with asyncio.timeout(deadline_s):
                line = await self._reader.readline()
        except TimeoutError:
            raise DeadlineMissed(f"{self._name} sent nothing for {deadline_s:g} s.") from None
        except (OSError, ValueError):  # it was killed while we wrote; or no line ends
            return None
        return line.decode(errors="replace").rstrip("\n") if line.endswith(b"\n") else None

    def last_words(self) -> str:
        """See `Conversation.last_words`."""
        return os.pread(self._program.stderr, COMPLAINT, 0).decode(errors="replace")


@asynccontextmanager
async def conversing(program: ConversingProgram) -> AsyncIterator[TextConversation]:
    """Exchange lines while the context is open, and close the stream at its end."""
    reader, writer = await asyncio.open_unix_connection(sock=program.ours.dup(), limit=LONGEST)
    try:
        yield TextConversation(program, reader, writer)
    finally:
        writer.transport.abort()  # what was not read by now never will be
        with suppress(OSError):
            await writer.wait_closed()

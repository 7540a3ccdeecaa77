"""Run the command that leads to an agent, with a stream to it, and explain its end.

Called by `host.remote.contact` for each attempt; calls `host.launch` and `host.remote.dial`.
Invariant: when the context ends, the command is gone, also where it is stopped or hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from coloctl.errors import HostOutOfReach
from coloctl.host.launch import ConversingProgram, claimed, start_talking
from coloctl.host.remote.dial import Dial
from coloctl.urgency import hasten_session

#: The longest line of a greeting, and what is read at once, bytes.
_READ_MAX = 256 * 1024
#: Of what the command wrote to standard error, the end counts.
_OUTPUT_MAX = 16 * 1024
#: More than this is freed: the agent reports there too, for as long as it runs.
_OUTPUT_KEPT = 1024 * 1024
_END_WAIT_S = 1.0

#: Starts the commands. Not a thread of the event loop, which cancels the start itself at its end.
_STARTS = ThreadPoolExecutor(4, thread_name_prefix="dial")


class AgentConnection:
    """One run of a dial's command."""

    def __init__(
        self,
        dial: Dial,
        program: ConversingProgram,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.reader, self.writer = reader, writer
        self._dial, self._program = dial, program

    async def failure(self, why: str = "") -> HostOutOfReach:
        """Explain why the stream has ended; ``why`` is what is known without the command."""
        code = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_WAIT_S):
                code = (await self._program.process.wait()).exit_code
        failure = self._dial.failure(code, self._output())
        return HostOutOfReach(why, hint=failure.hint) if why and not code else failure

    def bound_output(self) -> None:
        """Free what the command wrote to standard error, where that is much."""
        if os.fstat(self._program.stderr).st_blocks * 512 > _OUTPUT_KEPT:
            os.ftruncate(self._program.stderr, 0)

    def _output(self) -> str:
        size = os.fstat(self._program.stderr).st_size
        data = os.pread(self._program.stderr, _OUTPUT_MAX, max(0, size - _OUTPUT_MAX))
        return data.decode(errors="replace").replace("\0", "")


@asynccontextmanager
async def dialled(dial: Dial) -> AsyncIterator[AgentConnection]:
    """Run the command while the context is open; raises `HostOutOfReach` where it cannot start."""
    program = await _started(dial)
    try:
        sock = program.ours.dup()
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_READ_MAX)
        try:
            yield AgentConnection(dial, program, reader, writer)
        finally:
            writer.transport.abort()
    finally:
        await asyncio.shield(asyncio.ensure_future(_end(program)))


async def _started(dial: Dial) -> ConversingProgram:
    argv = dial.argv()
    try:
        program = await claimed(_STARTS.submit(start_talking, argv), ConversingProgram.discard)
    except OSError as error:
        raise HostOutOfReach(
            f"{dial.name} cannot be dialled: {argv[0]} could not be started: {error.strerror}.",
            hint="install the ssh client, or set COLOCTL_SSH to its path",
        ) from None
    hasten_session(program.process.identity.pid)
    return program


async def _end(program: ConversingProgram) -> None:
    """Kill the command, which has nothing left to do; it may be stopped, or hang."""
    try:
        with contextlib.suppress(Exception):
            await program.process.kill(_END_WAIT_S)
    finally:
        program.close()

"""Ask the QEMU guest agent, over the socket of its port: one conversation, one request.

Called by `supervisor.settling` and `supervisor.acts.powerdown`. The agent speaks QMP's JSON without
a greeting. A port keeps bytes that no process in the guest reads, and answers that were not read
here. So a conversation begins with a number that the agent sends back after a byte that no JSON
holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

from coloctl.clock import Deadline
from coloctl.errors import CommandRefused, DeadlineMissed, Unreachable

#: Ends all that was sent before, in both directions (``guest-sync-delimited``).
_SENTINEL = b"\xff"
#: An agent that cannot do it refuses within this time; one that does it is silent. Seconds.
REFUSAL_WAIT_S = 1.0
AGAIN_S = 1.0  #: An agent that runs answers within milliseconds; one that starts takes longer.
_LONGEST_LINE = 1 << 16
_BROKEN = (OSError, EOFError, ValueError, asyncio.LimitOverrunError)


async def answers(sock: socket.socket, deadline_s: float) -> None:
    """Wait until the agent in the guest has answered; ``sock`` is closed on every way out.

    Raises `DeadlineMissed` when no agent answers in time, `Unreachable` when the port closes.
    """
    async with _conversation(sock, deadline_s):
        pass


async def shut_down(sock: socket.socket, deadline_s: float) -> None:
    """Ask the agent in the guest to shut it down; ``sock`` is closed on every way out.

    Raises `DeadlineMissed` when no agent answers in time, `CommandRefused` when it cannot do it,
    and `Unreachable` when the port closes before it was asked.
    """
    async with _conversation(sock, deadline_s) as (reader, writer):
        await _send(writer, "guest-shutdown", mode="powerdown")
        await _refusal(reader)


@contextlib.asynccontextmanager
async def _conversation(
    sock: socket.socket, deadline_s: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Begin a conversation with the agent; raises as `answers` does."""
    deadline = Deadline(deadline_s)
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_LONGEST_LINE)
    try:
        async with asyncio.timeout(deadline.remaining()):
            await _synchronise(reader, writer)
        yield reader, writer
    except TimeoutError:
        raise DeadlineMissed(
            f"No agent in the guest answered within {deadline_s:g} s.",
            hint="is qemu-guest-agent installed and running there?",
        ) from None
    except _BROKEN as error:
        raise Unreachable(f"The guest agent's port does not carry: {error}.") from error
    finally:
        writer.close()
        with contextlib.suppress(*_BROKEN):
            await writer.wait_closed()


async def _synchronise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the agent listens, asking again and again.

    Bytes that reach a port while its guest goes over to another QEMU may be lost.
    """
    number = random.getrandbits(31)
    while True:
        writer.write(_SENTINEL)
        await _send(writer, "guest-sync-delimited", id=number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S):
                return await _said_back(reader, number)


async def _said_back(reader: asyncio.StreamReader, number: int) -> None:
    while True:
        await reader.readuntil(_SENTINEL)
        if (await _answer(reader)).get("return") == number:
            return


async def _send(writer: asyncio.StreamWriter, command: str, **arguments: Any) -> None:
    writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    await writer.drain()


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    answer = json.loads((await reader.readuntil(b"\n")).rpartition(_SENTINEL)[2])
    if not isinstance(answer, dict):
        raise ValueError("an answer that is no JSON object")
    return answer


async def _refusal(reader: asyncio.StreamReader) -> None:
    """Wait until the agent had time to refuse; the guest may be gone by then."""
    with contextlib.suppress(TimeoutError, *_BROKEN):
        async with asyncio.timeout(REFUSAL_WAIT_S):
            while (error := (await _answer(reader)).get("error")) is None:
                continue  # a number that was sent back twice
            raise CommandRefused("guest-shutdown", str(error.get("desc", "no reason given")))

"""The agent in the guest is asked once, and whatever it does the asker goes on in time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coloctl.errors import CommandRefused, DeadlineMissed, MonitorError, Unreachable
from coloctl.qmp import guestagent

pytestmark = pytest.mark.unit

Agent = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
REFUSED = {"error": {"class": "GenericError", "desc": "no shutdown here"}}


def conversation(agent: Agent, deadline_s: float = 5) -> None:
    """The asker speaks with ``agent``, to the end of both; raises what the asker raised."""

    async def check() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)

        async def answer() -> None:
            try:
                await agent(reader, writer)
            finally:
                writer.close()

        answering = asyncio.create_task(answer())
        try:
            await guestagent.shut_down(ours, deadline_s)
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        assert ours.fileno() == -1

    asyncio.run(check())


async def asked(reader: asyncio.StreamReader) -> dict[str, Any]:
    request: dict[str, Any] = json.loads((await reader.readuntil(b"\n")).lstrip(b"\xff"))
    return request


def said(answer: object) -> bytes:
    return json.dumps(answer).encode() + b"\n"


@pytest.mark.parametrize("stale", [b"", b'{"return": 7}\n', b'half an ans\xff{"return": 3}\n'])
def test_what_was_left_in_the_port_is_no_answer(stale: bytes) -> None:
    heard = []

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(stale)
        sync = await asked(reader)
        writer.write(b"\xff" + said({"return": sync["arguments"]["id"]}))
        heard.append(await asked(reader))

    conversation(agent)
    assert heard == [{"execute": "guest-shutdown", "arguments": {"mode": "powerdown"}}]


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return None


async def _nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xffno json\n")
    await reader.read()


async def _endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"x" * (1 << 18))
    await reader.read()


async def _unable(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sync = await asked(reader)
    writer.write(b"\xff" + said({"return": sync["arguments"]["id"]}))
    await asked(reader)
    writer.write(said(REFUSED))


@pytest.mark.parametrize(
    ("agent", "error"),
    [
        (_silent, DeadlineMissed),
        (_closed, Unreachable),
        (_nonsense, Unreachable),
        (_endless, Unreachable),
        (_unable, CommandRefused),
    ],
)
def test_an_agent_that_does_not_do_it_is_told_apart(
    agent: Agent, error: type[MonitorError]
) -> None:
    with pytest.raises(error):
        conversation(agent, 0.5)

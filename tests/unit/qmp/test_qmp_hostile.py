"""A peer that misbehaves costs its own connection, never the loop or the end of its QEMU."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.becoming import becomes

from coloctl.control.wire import Splitter
from coloctl.errors import CommandRefused, MonitorError, Unreachable
from coloctl.qmp import client
from coloctl.qmp import command as qmp
from coloctl.qmp.session import Event, Session

pytestmark = pytest.mark.unit

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}, "capabilities": []}}
EVENT = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\n'


def line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def request(reader: asyncio.StreamReader) -> bytes:
    """The next request, which has no line break behind it."""
    splitter = Splitter()
    while True:
        for whole in splitter.feed(await reader.read(4096)):
            return whole


@asynccontextmanager
async def met(events: list[Event], **more: Any) -> AsyncIterator[tuple[Session, Any, Any]]:
    """A session, and its peer's reader and writer, which have agreed on capabilities."""
    ours, its = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=its)
    writer.write(line(GREETING))

    async def agree() -> None:
        asked = json.loads(await request(reader))
        writer.write(line({"return": {}, "id": asked["id"]}))

    agreeing = asyncio.create_task(agree())
    session = await Session.open(
        ours, name="a", oob=False, deadline_s=20, on_event=events.append, **more
    )
    await agreeing
    try:
        yield session, reader, writer
    finally:
        writer.close()
        await session.aclose()


NONSENSE = {
    "a list": b"[]\n",
    "no object": b"7\n",
    "bytes": b"\xff\xfe\n",
    "an event of no name": b'{"event": 5}\n',
    "an event of a list": b'{"event": []}\n',
    "a stamp of no time": b'{"event": "X", "timestamp": 7}\n',
    "a stamp of words": b'{"event": "X", "timestamp": {"seconds": "now"}}\n',
    "a huge number": b'{"event": "X", "timestamp": {"seconds": ' + b"9" * 5000 + b"}}\n",
    "an answer to nothing": b'{"return": {}, "id": "never asked"}\n',
    "an answer to a list": b'{"return": {}, "id": [1]}\n',
    "an answer to all": b'{"return": {}, "error": {}, "event": "X", "id": {}}\n',
    "an error of a number": b'{"error": 5, "id": "probe-query-yank"}\n',
    "deep nesting": b'{"a":' * 100_000 + b"\n",
    "deep lists": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_whatever_a_peer_says_its_end_raises_nothing(what: str) -> None:
    async with met([]) as (session, reader, writer):
        asking = asyncio.create_task(session.execute(qmp.query_status(), 5))
        await request(reader)
        writer.write(NONSENSE[what])
        await writer.drain()
        writer.write(b'{"return": {}, "id": "never"}\n')
        writer.close()
        with pytest.raises((MonitorError, CommandRefused)):
            await asking
        await session.aclose()
        with pytest.raises(Unreachable):
            await session.execute(qmp.query_status(), 5)


async def test_a_message_that_is_too_long_costs_its_sender_the_connection() -> None:
    events: list[Event] = []
    async with met(events) as (session, _, writer):
        whole = b"x" * (client.MESSAGE_MAX - 100)
        writer.write(line({"event": "X", "timestamp": {}, "data": {"a": whole.decode()}}))
        await writer.drain()
        await becomes(lambda: events)
        writer.write(b'{"event": "' + b"x" * (client.MESSAGE_MAX + 100))
        async with asyncio.timeout(20):
            await session.closed()
        with pytest.raises(Unreachable, match="not QMP"):
            await session.execute(qmp.query_status(), 5)


async def test_a_record_keeps_no_long_message() -> None:
    events: list[Event] = []
    kept: list[Any] = []
    record = lambda _what, message: kept.append(message)  # noqa: E731
    async with met(events, record=record) as (_, _, writer):
        data = {"a": "x" * client.RECORD_MAX}
        writer.write(line({"event": "X", "timestamp": {"seconds": 1}, "data": data}))
        await writer.drain()
        await becomes(lambda: events)
        assert events[0].data == data  # who waits for it gets it whole
    (long,) = (one for one in kept if one.get("event") == "X")
    assert "data" not in long and "bytes" in long["left-out"]


async def test_a_flood_leaves_everybody_else_a_turn() -> None:
    """What has arrived already is read without a wait: only a turn in between lets others work."""

    events: list[Event] = []
    async with met(events) as (_, _, writer):
        turns = 0

        async def work() -> None:
            nonlocal turns
            while len(events) < 10_000:
                await asyncio.sleep(0)
                turns += 1

        writer.write(EVENT * 10_000)
        async with asyncio.timeout(60):
            await work()
        assert turns > 5_000


@pytest.mark.parametrize("turns", range(8))
async def test_an_end_that_is_cut_short_ends_all_the_same_and_forgets_no_error(turns: int) -> None:
    """The verb is told to end while it closes the monitor of a QEMU that it has just killed."""
    forgotten: list[str] = []

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, what: forgotten.append(what["message"]))
    lost = asyncio.Event()
    async with met([], on_lost=lost.set) as (session, _, writer):
        writer.close()
        await lost.wait()
        ending = asyncio.create_task(session.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        ending.cancel()
        await asyncio.wait({ending})
    del session, ending
    gc.collect()
    await asyncio.sleep(0)
    gc.collect()
    assert forgotten == []

"""A QMP server that misbehaves on request, in the event loop of the test.

    async with FakeQMP({"query-status": {"status": "running"}, "stop": HANG}) as fake:
        session = await open_session(fake)

An answer is a value to return, a `Refusal`, a function of the arguments that gives one of these,
or a misbehaviour. Commands that are not listed return ``{}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from coloctl.qmp.monitor import Monitor
from coloctl.qmp.session import Event, Session


class Misbehaviour(Enum):
    HANG = "never answers, unless told to by answer_late()"
    HALF = "sends half an answer and nothing more"
    HALF_AND_CLOSE = "sends half an answer and hangs up"
    CLOSE = "hangs up without an answer"
    GARBAGE = "sends a line that is not JSON"


HANG = Misbehaviour.HANG
HALF = Misbehaviour.HALF
HALF_AND_CLOSE = Misbehaviour.HALF_AND_CLOSE
CLOSE = Misbehaviour.CLOSE
GARBAGE = Misbehaviour.GARBAGE

GREETING = (
    b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "fake"},'
    b' "capabilities": ["oob"]}}\r\n'
)


@dataclass(frozen=True)
class Refusal:
    desc: str
    error_class: str = "GenericError"


class FakeQMP:
    """One monitor; ``client`` is the socket to open a session on."""

    def __init__(
        self,
        answers: Mapping[str, Any] | None = None,
        *,
        greeting: bytes = GREETING,
        deaf: bool = False,
    ) -> None:
        self.answers = dict(answers or {})
        self.received: list[dict[str, Any]] = []
        self.fds: list[int] = []
        self.client, self._server = socket.socketpair()
        self._greeting = greeting
        self._deaf = deaf  # greets, negotiates, then reads no more
        self._buffer = b""
        self._news = asyncio.Event()
        self._owed: list[tuple[dict[str, Any], Any]] = []

    async def __aenter__(self) -> Self:
        self._server.setblocking(False)
        asyncio.get_running_loop().add_reader(self._server, self._readable)
        if self._greeting:
            self._write(self._greeting)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        self.client.close()
        for fd in self.fds:
            os.close(fd)

    def close(self) -> None:
        """Hangs up."""
        if self._server.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._server)
            self._server.close()

    def send(self, message: Mapping[str, Any]) -> None:
        self._write(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, data: Mapping[str, Any] | None = None, at: float = 1000.25) -> None:
        stamp = {"seconds": int(at), "microseconds": round(at % 1 * 1e6)}
        self.send({"event": name, "data": dict(data or {}), "timestamp": stamp})

    async def flood(self, name: str, count: int) -> None:
        """Sends ``count`` events as fast as they are read."""
        loop = asyncio.get_running_loop()
        for first in range(0, count, 100):
            lines = [
                json.dumps(
                    {
                        "event": name,
                        "data": {"n": n},
                        "timestamp": {"seconds": n, "microseconds": 0},
                    }
                )
                for n in range(first, min(first + 100, count))
            ]
            await loop.sock_sendall(self._server, ("\r\n".join(lines) + "\r\n").encode())

    def answer_late(self) -> None:
        """Gives every answer that HANG held back."""
        for message, answer in self._owed:
            self._answer(message, answer)
        self._owed.clear()

    def commands(self) -> list[str]:
        """The names of what was received, in order, without the negotiation."""
        names = [str(m.get("execute") or m.get("exec-oob")) for m in self.received]
        return [name for name in names if name != "qmp_capabilities"]

    def drain(self) -> int:
        """Reads what has arrived and throws it away; the number of bytes."""
        count = 0
        with suppress(BlockingIOError):
            while data := self._server.recv(65536):
                count += len(data)
        return count

    async def got(self, name: str) -> None:
        """Returns once a command of that name was received."""
        while name not in self.commands():
            self._news.clear()
            await self._news.wait()

    def _write(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self._server.send(data)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._server, 65536, 8)
        except ConnectionResetError:  # the client went away with unread bytes
            data, fds = b"", []
        self.fds += fds
        if not data:
            self.close()
            return
        self._buffer += data
        while b"\n" in self._buffer or _is_json(self._buffer):
            line, _, self._buffer = self._buffer.partition(b"\n")
            for message in _messages(line):
                self._handle(message)

    def _handle(self, message: dict[str, Any]) -> None:
        self.received.append(message)
        self._news.set()
        name = message.get("execute") or message.get("exec-oob")
        if self._deaf and name == "qmp_capabilities":
            asyncio.get_running_loop().remove_reader(self._server)
        answer = self.answers.get(str(name), {})
        if callable(answer):
            answer = answer(message.get("arguments", {}))
        if isinstance(answer, Misbehaviour):
            self._misbehave(answer, message)
        else:
            self._answer(message, answer)

    def _answer(self, message: Mapping[str, Any], answer: Any) -> None:
        ident = {"id": message["id"]} if "id" in message else {}
        if isinstance(answer, Refusal):
            error = {"class": answer.error_class, "desc": answer.desc}
            self.send({"error": error, **ident})
        else:
            self.send({"return": answer, **ident})

    def _misbehave(self, how: Misbehaviour, message: dict[str, Any]) -> None:
        if how is HANG:
            self._owed.append((message, {"late": message.get("id")}))
        if how in (HALF, HALF_AND_CLOSE):
            self._write(b'{"return": {"half": ')
        if how is GARBAGE:
            self._write(b"Segmentation fault\r\n")
        if how in (CLOSE, HALF_AND_CLOSE):
            self.close()


def _is_json(data: bytes) -> bool:
    return bool(list(_messages(data)))


def _messages(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects in ``data``, which may follow each other on one line."""
    text, found = data.decode().strip(), []
    while text:
        try:
            message, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return []
        found.append(message)
        text = text[end:].strip()
    return found


def ignore(_: Event) -> None:
    return None


async def open_session(
    fake: FakeQMP, on_event: Callable[[Event], None] = ignore, **more: Any
) -> Session:
    """A session on the fake, by the defaults of most tests."""
    defaults: dict[str, Any] = {"name": "a", "oob": True, "deadline_s": 5.0}
    return await Session.open(fake.client, on_event=on_event, **{**defaults, **more})


async def open_monitor(command: FakeQMP, rescue: FakeQMP, **more: Any) -> Monitor:
    """A monitor with both its roads on fakes."""
    return await Monitor.open("a", command.client, rescue.client, deadline_s=5.0, **more)

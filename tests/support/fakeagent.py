"""An agent in the test's own process, which says of itself what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from support.dials import PlainDial

from coloctl import __version__
from coloctl.errors import PreconditionFailed
from coloctl.host.machine import this_machine
from coloctl.host.wire.codec import encode
from coloctl.host.wire.frames import PROTOCOL, receive_hello, send_hello
from coloctl.host.wire.mux import Mux

#: Joins standard input and output with the unix socket of the agent, as ssh does with a server.
JOIN = """
import os, select, socket, sys
there = socket.socket(socket.AF_UNIX); there.connect(sys.argv[1])
while True:
    for one in select.select([0, there], [], [])[0]:
        data = os.read(0, 65536) if one == 0 else there.recv(65536)
        if not data: sys.exit()
        there.sendall(data) if one == 0 else os.write(1, data)
"""


class FakeAgent:
    """Serves each connection with one session, until `session` is changed."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.machine = replace(this_machine(), name="hv2", machine_id="hv2", boot_id="boot-1")
        self.session = "one"
        self.greeting = f"COLOCTL-AGENT {PROTOCOL} {__version__}\n"
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.pushed: list[tuple[str, Mapping[str, Any]]] = []
        self.beaten: list[Mapping[str, Any]] = []
        self.hellos: list[Mapping[str, Any]] = []
        self.mux = self._mux()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.hang_up()
        await self.mux.aclose()

    @property
    def dial(self) -> PlainDial:
        return PlainDial((sys.executable, "-I", "-S", "-c", JOIN, str(self.socket)), "hv2")

    def hang_up(self) -> None:
        """End each connection, as a machine does that goes on running."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def begin(self, session: str, **machine: str) -> None:
        """Be another agent from the next connection on, perhaps on a machine that has changed."""
        self.session, self.mux = session, self._mux()
        self.machine = replace(self.machine, **machine)
        self.hang_up()

    def beat(self, document: Mapping[str, Any]) -> None:
        self.mux.beat({"p": [], "l": [], "d": [], **document})

    def _mux(self) -> Mux:
        return Mux(
            self._answer,
            lambda of, document: self.pushed.append((of, document)),
            odd=False,
            beaten=self.beaten.append,
        )

    async def _answer(self, do: str, arguments: Mapping[str, Any], deadline_s: float) -> Any:
        self.asked.append((do, arguments))
        answer = self.answers.get(do, PreconditionFailed(f"Unknown: {do}."))
        if isinstance(answer, Exception):
            raise answer
        return await answer() if callable(answer) else answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(EOFError, OSError):  # the client hung up
            await self._serve_one(reader, writer)
        writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mux = self.mux
        writer.write(self.greeting.encode())
        hello = await receive_hello(reader, 10)
        self.hellos.append(hello)
        resumed = hello["session"] == self.session
        await send_hello(
            writer,
            {
                **{"proto": PROTOCOL, "version": __version__, "machine": encode(self.machine)},
                **{"session": self.session, "resumed": resumed, "received": mux.received},
            },
        )
        await mux.carry(reader, writer, hello["received"] if resumed else 0)

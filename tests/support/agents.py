"""An agent as a child process, and a client that speaks its protocol and nothing more."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from coloctl import __version__
from coloctl.host.agent.work import OPERATIONS
from coloctl.host.wire.codec import decode_answer, encode
from coloctl.host.wire.frames import PROTOCOL, receive_hello, send_hello
from coloctl.host.wire.mux import Mux

AGENT = (sys.executable, "-m", "coloctl.host.agent.main")
HELLO = {
    "proto": PROTOCOL,
    "version": __version__,
    "client": "supervisor",
    "pair": "",
    "session": "",
    "secret": "",
    "received": 0,
    "beat_ms": 20,
    "linger_s": 0.0,
}


class Client:
    """The other end of an agent: asks, and keeps what is pushed and the newest beat."""

    def __init__(self) -> None:
        self.mux = Mux(self._serve, self._pushed, odd=True, beaten=self._beaten, peer="the agent")
        self.pushes: list[dict[str, Any]] = []
        self.beat: Mapping[str, Any] = {}
        self.hello: Mapping[str, Any] = {}
        self._news = asyncio.Event()

    async def ask(self, do: str, **arguments: object) -> Any:
        """The decoded result of an operation."""
        document = {name: encode(value) for name, value in arguments.items()}
        answer = await self.mux.ask(do, document, float(document.get("deadline_s", 20.0)))
        return decode_answer(OPERATIONS[do], answer)

    async def until(self, true: Callable[[], Any], within_s: float = 20.0) -> Any:
        """What ``true`` returns, once a push or a beat has made it true."""
        async with asyncio.timeout(within_s):
            while not (found := true()):
                self._news.clear()
                await self._news.wait()
        return found

    async def pushed(self, of: str, hold: int) -> dict[str, Any]:
        """The push of that kind about a hold."""
        found: list[dict[str, Any]] = await self.until(
            lambda: [one for one in self.pushes if one["of"] == of and one["hold"] == hold]
        )
        return found[0]

    async def row(self, table: str, hold: int, true: Callable[[list[Any]], Any]) -> list[Any]:
        """The row of a hold in the beats, once ``true`` accepts it."""

        def rows() -> list[list[Any]]:
            return [row for row in self.beat.get(table, ()) if row[0] == hold and true(row)]

        return (await self.until(rows))[0]  # type: ignore[no-any-return]

    async def _serve(self, do: str, arguments: Mapping[str, Any], deadline_s: float) -> Any:
        raise AssertionError(f"the agent asked for {do}")

    def _pushed(self, of: str, document: Mapping[str, Any]) -> None:
        self.pushes.append({**document, "of": of})
        self._news.set()

    def _beaten(self, document: Mapping[str, Any]) -> None:
        self.beat = document
        self._news.set()


@asynccontextmanager
async def agent_process(
    argv: Sequence[str] = AGENT, *, stays: bool = False
) -> AsyncIterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """An agent with the other end of its standard input and output; killed if it does not end."""
    ours, its = socket.socketpair()
    with ours, its:
        process = subprocess.Popen(  # noqa: ASYNC220  # milliseconds, in a test
            list(argv),
            stdin=its.fileno(),
            stdout=its.fileno(),
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        its.close()
        try:
            yield process, ours
        finally:
            ours.close()
            if stays:
                process.terminate()
            try:
                await asyncio.to_thread(process.wait, 20)
            finally:
                process.kill()
                process.wait()
                assert process.stderr is not None
                process.stderr.close()


@asynccontextmanager
async def connected(
    sock: socket.socket, hello: Mapping[str, Any] | None = None, client: Client | None = None
) -> AsyncIterator[Client]:
    """A session over ``sock``, whose greeting is still to come."""
    reader, writer = await asyncio.open_unix_connection(sock=sock.dup())
    client = client or Client()
    try:
        greeting = (await asyncio.wait_for(reader.readline(), 60)).decode().split()
        assert greeting == ["COLOCTL-AGENT", str(PROTOCOL), __version__]
        await send_hello(writer, {**HELLO, **(hello or {})})
        client.hello = await receive_hello(reader, 60)
        carrying = asyncio.create_task(
            client.mux.carry(reader, writer, int(client.hello.get("received", 0)))
        )
        try:
            yield client
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def agent_client(argv: Sequence[str] = AGENT, **hello: Any) -> AsyncIterator[Client]:
    """A client of an agent of its own."""
    async with agent_process(argv) as (_, sock), connected(sock, hello) as client:
        try:
            yield client
        finally:
            await client.mux.aclose()

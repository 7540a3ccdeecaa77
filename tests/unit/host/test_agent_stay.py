"""An agent that outlives its connections: real processes, one connection after the other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agents import Client, agent_process, connected

from coloctl.host.beacon import new_key
from coloctl.model.launch import Launch
from coloctl.model.wires import Endpoint
from coloctl.procfs import read_stat

pytestmark = pytest.mark.unit

SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(1000)")
#: Greets, then sends back what it reads.
ECHO = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
sock = listener.accept()[0]
sock.sendall(b"hello")
while data := sock.recv(65536):
    sock.sendall(data)
"""
SECRET = "0123456789abcdef"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The pair's folder; a socket in it needs a short path."""
    with tempfile.TemporaryDirectory(prefix="ca-") as state:
        monkeypatch.setenv("COLOCTL_STATE_DIR", state)
        yield Path(state) / "web"


def runs(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state != "Z"


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110  # other processes have no event here
            await asyncio.sleep(0.01)


def hello(client: Client | None = None, **more: Any) -> dict[str, Any]:
    """The HELLO of a client of the pair: to begin, or to resume the session that it has."""
    asked: dict[str, Any] = {"pair": "web", "secret": SECRET, "linger_s": 60}
    if client is not None:
        asked |= {"session": client.hello["session"], "received": client.mux.received}
    return asked | more


async def launched(client: Client, folder: Path, argv: tuple[str, ...] = SLEEPER) -> Any:
    sockets = {"qmp": folder / "q"} if "{fd:qmp}" in argv else {}
    program = Launch(argv, sockets)
    return await client.ask("launch", program=program, stderr=folder / "log", node="b")


async def ended(process: subprocess.Popen[bytes]) -> None:
    await asyncio.to_thread(process.wait, 30)


@contextlib.asynccontextmanager
async def killed(handle: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(handle.identity.pid, signal.SIGKILL)


async def test_a_session_goes_on_over_another_connection(folder: Path) -> None:
    """Nothing is lost in between: a death, what a monitor sent, the numbers of holds."""
    argv = (sys.executable, "-S", "-c", ECHO, "{fd:qmp}")
    async with agent_process(stays=True) as (first, one):
        async with connected(one, hello()) as client:
            sleeper = await launched(client, folder)
            served = await launched(client, folder, argv)
            monitor = client.mux.stream(
                await client.ask("monitor", path=folder / "q", deadline_s=20.0)
            )
            assert (await monitor.read()).data == b"hello"
            one.close()
            os.kill(first.pid, signal.SIGHUP)
        await monitor.write(b"over both")
        os.kill(sleeper.identity.pid, signal.SIGKILL)
        async with (
            agent_process(stays=True) as (second, two),
            killed(served),
            connected(two, hello(client), client),
        ):
            assert client.hello["resumed"] is True
            assert (await client.pushed("death", sleeper.hold))["exit_code"] == -9
            assert (await monitor.read()).data == b"over both"
            proof = await client.ask("end", hold=served.hold, gently=False, deadline_s=20.0)
            assert proof.pid == served.identity.pid
            assert first.poll() is None and second.poll() is None
            client.mux.bye(keep=False)
            await ended(first)
            await ended(second)
    assert not list(folder.glob("agent*"))


async def test_the_link_is_beaten_without_a_connection() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as a, socket.socket(type=socket.SOCK_DGRAM) as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        ends = [Endpoint(*sock.getsockname()) for sock in (a, b)]
    key = new_key()
    async with agent_process(stays=True) as (_, one):
        async with connected(one, hello()) as client:
            here = await client.ask("beacon", at=ends[0], peer=ends[1], key=key, beat_ms=10)
            there = await client.ask("beacon", at=ends[1], peer=ends[0], key=key, beat_ms=10)
            for mine, theirs in ((here, there), (there, here)):
                drawn = base64.b64encode(theirs.session).decode()
                client.mux.push("meet", {"hold": mine.hold, "session": drawn})
            before = (await client.row("l", here.hold, lambda row: row[1] >= 5))[1]
            one.close()
        await asyncio.sleep(0.5)
        client.beat = {}
        async with agent_process(stays=True) as (_, two), connected(two, hello(client), client):
            row = await client.row("l", here.hold, lambda row: True)
            assert row[1] > before + 5


@pytest.mark.parametrize("change", [{"secret": "another"}, {"session": "0" * 32}, {"session": ""}])
async def test_another_client_ends_the_agent_and_begins_anew(
    folder: Path, change: dict[str, str]
) -> None:
    async with agent_process(stays=True) as (first, one), connected(one, hello()) as client:
        sleeper = await launched(client, folder)
        was = client.hello["session"]
        async with (
            agent_process(stays=True) as (_, two),
            killed(sleeper),
            connected(two, hello(client, **change)) as other,
        ):
            assert other.hello["resumed"] is False and other.hello["session"] != was
            await ended(first)
            adopted = await other.ask(
                "adopt", identity=sleeper.identity, node="b", leader=None, sockets=()
            )
            assert adopted.identity == sleeper.identity


async def test_the_newest_of_two_connections_counts() -> None:
    async with agent_process(stays=True) as (first, one), connected(one, hello()) as client:
        one.close()
        second = Client()
        second.mux.session = client.hello["session"]
        async with (
            agent_process(stays=True) as (_, two),
            connected(two, hello(client), second),
            agent_process(stays=True) as (_, three),
        ):
            assert second.hello["resumed"] is True
            async with connected(three, hello(second), second):
                assert second.hello["resumed"] is True
                assert await second.ask("which", program="sh") is not None
                assert first.poll() is None


async def test_two_agents_that_begin_at_once_leave_one(folder: Path) -> None:
    async with (
        agent_process(stays=True) as (first, one),
        agent_process(stays=True) as (second, two),
        connected(one, hello()) as client,
        connected(two, hello()) as other,
    ):
        await until(lambda: first.poll() is not None or second.poll() is not None)
        left = other if second.poll() is None else client
        assert await left.ask("which", program="sh") is not None
        assert len(list(folder.glob("*.sock"))) == 1


async def test_an_agent_that_does_not_answer_is_killed_and_its_programs_are_not(
    folder: Path,
) -> None:
    async with agent_process(stays=True) as (first, one):
        async with connected(one, hello()) as client:
            sleeper = await launched(client, folder)
            one.close()
        async with killed(sleeper):
            os.kill(first.pid, signal.SIGSTOP)
            try:
                async with agent_process(stays=True) as (_, two), connected(two, hello()) as other:
                    assert other.hello.get("resumed") is False, other.hello
                    await ended(first)
                    assert first.returncode == -signal.SIGKILL
                    assert runs(sleeper.identity.pid)
            finally:
                first.kill()


async def test_an_agent_ends_by_itself(folder: Path) -> None:
    """After its time without a connection, and where its folder is gone."""
    async with agent_process(stays=True) as (process, one):
        async with connected(one, hello(linger_s=0.3)) as client:
            sleeper = await launched(client, folder)
            one.close()
        async with killed(sleeper):
            await ended(process)
            assert process.returncode == 0 and runs(sleeper.identity.pid)
            assert not list(folder.glob("agent*"))
    async with agent_process(stays=True) as (process, one):
        async with connected(one, hello()):
            shutil.rmtree(folder)
            one.close()
        await ended(process)
        assert process.returncode == 0
    assert not folder.exists()


async def test_what_a_supervisor_leaves_stays(folder: Path) -> None:
    async with agent_process(stays=True) as (process, one), connected(one, hello()) as client:
        sleeper = await launched(client, folder)
        async with killed(sleeper):
            client.mux.bye(keep=True)
            await ended(process)
            assert runs(sleeper.identity.pid) and (folder / "log").exists()
            assert not list(folder.glob("agent*"))


@pytest.mark.parametrize("pair", ["../web", "a/b", ".."])
async def test_a_strange_name_is_refused(pair: str) -> None:
    async with agent_process() as (process, sock), connected(sock, hello(pair=pair)) as client:
        assert "No agent can stay" in client.hello["error"]["desc"]
        await ended(process)

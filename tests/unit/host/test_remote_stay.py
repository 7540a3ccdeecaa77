"""A host of another machine and its agent, both real, over a connection that is cut."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.dials import AGENT, PlainDial

from coloctl.host.holders import holders
from coloctl.host.records import Contact
from coloctl.host.remote.host import RemoteHost
from coloctl.model.launch import Launch
from coloctl.model.observation import Life
from coloctl.procfs import read_stat

pytestmark = pytest.mark.unit

LONG_S = 40.0
SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(1000)")
#: Greets, then answers each line with the same line.
ECHO = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
sock = listener.accept()[0]
sock.sendall(b"hello\\n")
for line in sock.makefile("rb"):
    sock.sendall(line)
"""
#: Leads to the command in its arguments over two pipes, as sshd does, and notes its own pid.
_LEADS = """
import os, select, subprocess, sys
with open(sys.argv[1], "w") as note:
    note.write(str(os.getpid()))
PIPE = subprocess.PIPE
agent = subprocess.Popen(sys.argv[2:], stdin=PIPE, stdout=PIPE, bufsize=0, start_new_session=True)
out = {0: agent.stdin.write, agent.stdout.fileno(): lambda data: os.write(1, data)}
while True:
    for one in select.select(list(out), [], [])[0]:
        data = os.read(one, 65536)
        if not data: sys.exit()
        out[one](data)
"""


class Line:
    """The way to an agent, which can be cut: the process that leads there is killed."""

    def __init__(self, folder: Path) -> None:
        self._note = folder / "pid"
        words = (sys.executable, "-I", "-S", "-c", _LEADS, str(self._note))
        self.dial = PlainDial((*words, *AGENT.command), "hv2")

    def cut(self) -> None:
        os.kill(int(self._note.read_text()), signal.SIGKILL)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state folder of the agent; a socket in it needs a short path."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        monkeypatch.setenv("COLOCTL_STATE_DIR", folder)
        yield Path(folder)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


@pytest.fixture
async def host(line: Line, state: Path) -> AsyncIterator[RemoteHost]:
    host = RemoteHost("ssh://hv2", line.dial, pair="web")
    try:
        await host.ready(LONG_S)
        yield host
    finally:
        await host.aclose()
    async with asyncio.timeout(LONG_S):
        while list((state / "web").glob("*.sock")):  # noqa: ASYNC110  # it ends by itself
            await asyncio.sleep(0.05)


def runs(pid: int) -> bool:
    found = read_stat(pid)
    return found is not None and found.state != "Z"


async def reached(host: RemoteHost) -> None:
    async with asyncio.timeout(LONG_S):
        while host.reach.contact is not Contact.CONNECTED:
            await host.reached(host.reach)


async def test_a_monitor_outlives_many_connections(
    host: RemoteHost, line: Line, tmp_path: Path
) -> None:
    """Each line arrives once and in its order, however often the connection is cut."""
    program = Launch((sys.executable, "-S", "-c", ECHO, "{fd:qmp}"), {"qmp": tmp_path / "qmp"})
    process = await host.launch(program, stderr=tmp_path / "log", node="b")
    session = host.reach.session
    loop = asyncio.get_running_loop()
    lines = [b"%06d %s\n" % (n, b"x" * (n % 700)) for n in range(2000)]
    expected = b"".join([b"hello\n", *lines])
    with await host.monitor(tmp_path / "qmp", LONG_S) as monitor:
        assert await host.speaker(monitor, LONG_S) == process.identity

        async def write() -> None:
            for one in lines:
                await loop.sock_sendall(monitor, one)
                await asyncio.sleep(0)

        async def read() -> bytes:
            data = b""
            while len(data) < len(expected):
                more = await loop.sock_recv(monitor, 65536)
                assert more, "the monitor was closed"
                data += more
            return data

        writing, reading = asyncio.create_task(write()), asyncio.create_task(read())
        for _ in range(4):
            await reached(host)
            await asyncio.sleep(0.05)
            line.cut()
            async with asyncio.timeout(LONG_S):
                while host.reach.contact is Contact.CONNECTED:
                    await host.reached(host.reach)
        data = await asyncio.wait_for(reading, LONG_S)
        await writing
        assert data == expected
    assert host.reach.session == session
    await reached(host)
    proof = await process.kill(LONG_S)
    assert proof.how in ("sigkill", "already-dead"), "it ends by itself where its client left"


async def test_a_death_during_a_cut_is_reported_after_it(
    host: RemoteHost, line: Line, tmp_path: Path
) -> None:
    process = await host.launch(Launch(SLEEPER), stderr=tmp_path / "log", node="b")
    waiting = asyncio.create_task(process.wait())
    line.cut()
    died_s = time.monotonic()
    os.kill(process.identity.pid, signal.SIGKILL)
    death = await asyncio.wait_for(waiting, LONG_S)
    assert death.exit_code == -signal.SIGKILL
    assert abs(death.at_s - died_s) < LONG_S
    assert process.life() is Life.DEAD


async def test_an_agent_that_was_killed_is_replaced_and_its_processes_are_adopted(
    host: RemoteHost, state: Path, tmp_path: Path
) -> None:
    """The new agent has forgotten everything, so the session of the reach is another one."""
    process = await host.launch(Launch(SLEEPER), stderr=tmp_path / "log", node="b")
    before = host.reach
    (path,) = (state / "web").glob("*.sock")
    ((stray, *_),) = holders([path]).values()
    os.kill(stray.identity.pid, signal.SIGKILL)
    async with asyncio.timeout(LONG_S):
        while host.reach.session == before.session or host.reach.out:
            await host.reached(host.reach)
        while process.life() is not Life.ALIVE:  # noqa: ASYNC110  # a beat changes it
            await asyncio.sleep(0.01)
    assert runs(process.identity.pid)
    proof = await process.kill(LONG_S)
    assert (proof.pid, proof.exit_code) == (process.identity.pid, None)

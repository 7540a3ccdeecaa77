"""The promises of a host, kept over a real ssh by an agent that was sent and that stays.

The other machine is this one, behind sshd: the tests look at what the agent has done. Beyond the
promises: the ssh is killed again and again, and what it has carried goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support import sshhost
from support.conformance import *  # noqa: F403  # every test of it is one of this module
from support.conformance import LONG_S, MONITOR, line_of

from coloctl import procfs
from coloctl.host import open_host
from coloctl.host.base import Host
from coloctl.host.process import command_line
from coloctl.host.records import Contact
from coloctl.model.launch import Launch

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

HERE = f"/proc/{os.getpid()}/ns/net"


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state folder of the agent; a socket in it needs a short path."""
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        monkeypatch.setenv("COLOCTL_STATE_DIR", folder)
        yield Path(folder)


@pytest.fixture
async def host(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    served = sshhost.serve(tmp_path / "ssh", {"host-b": HERE})
    monkeypatch.setenv("COLOCTL_SSH", served.environment["COLOCTL_SSH"])
    host = open_host("ssh://host-b", pair="web")
    try:
        await host.ready(LONG_S)
        yield host
    finally:
        await host.aclose()
    async with asyncio.timeout(LONG_S):
        while list(state.glob("web/agent*")):  # noqa: ASYNC110  # the agent ends by itself
            await asyncio.sleep(0.05)


def clients(config: Path) -> list[int]:
    """The ssh processes of this test."""
    return [
        pid
        for pid in procfs.living()
        if (words := command_line(pid)) and str(config) in words and "-T" in words
    ]


async def test_ssh_is_killed_and_what_it_carried_goes_on(host: Host, tmp_path: Path) -> None:
    argv = (sys.executable, "-S", "-c", MONITOR, "{fd:qmp}")
    program = Launch(argv, {"qmp": tmp_path / "qmp.sock"})
    process = await host.launch(program, stderr=tmp_path / "log", node="b")
    session = host.reach.session
    loop = asyncio.get_running_loop()
    with await host.monitor(tmp_path / "qmp.sock", LONG_S) as monitor:
        assert await line_of(monitor) == b"hello\n"
        for _ in range(3):
            before = host.reach
            (ssh,) = clients(tmp_path / "ssh" / "ssh_config")
            os.kill(ssh, signal.SIGKILL)
            await loop.sock_sendall(monitor, b"1234567")
            assert await line_of(monitor) == b"7 0\n"
            async with asyncio.timeout(LONG_S):
                while host.reach.contact is not Contact.CONNECTED or host.reach == before:
                    await host.reached(host.reach)
        assert host.reach.session == session
        assert (await process.kill(LONG_S)).how == "sigkill"

"""A guest whose two QEMUs share a host: they meet at unix sockets, under a stream of packets."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.clients import MAC, booted, clients, guest_spec
from support.pairs import supervised

from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.lab import guest, layout, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import NicSpec, NodeSpec, PairSpec, TapSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.guest

#: Sends as fast as it is taken, and reads what comes back.
BULK = """
import select, socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
sock.setblocking(False)
block, sent, back = bytes(65536), 0, 0
while True:
    readable, writable, _ = select.select([sock], [sock], [])
    if readable:
        back += len(sock.recv(1 << 20))
    if writable and sent - back < 1 << 20:
        sent += sock.send(block)
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-one") as lab:
        yield lab


@pytest.fixture
def spec(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path_factory: pytest.TempPathFactory,
    qemu_builds: Callable[[str], qemu.Build],
) -> PairSpec:
    """The lab's guest, both of its nodes on the lab's first host."""
    folder = tmp_path_factory.mktemp("o")
    apart = guest_spec(lab, guest_image, folder, qemu_builds("11.1"), services=True)
    host = f"netns:{lab.host_a}"
    taps = TapSpec({"a": layout.TAPS["host-a"], "b": layout.SECOND_TAPS["host-a"]}, layout.BRIDGE)
    return replace(
        apart,
        nodes={
            "a": NodeSpec("a", host, layout.REPLICATION_A),
            "b": NodeSpec("b", host, layout.REPLICATION_B),
        },
        nics=(NicSpec("hn0", MAC, taps),),
    )


@contextlib.contextmanager
def bulk(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", BULK, layout.GUEST, str(guest.ECHO_PORT)]
    with lab.popen(argv) as sending:
        try:
            yield sending
        finally:
            sending.kill()


async def test_a_stream_of_packets_holds_nobody_up_and_clients_lose_nothing(
    spec: PairSpec, lab: Lab, tmp_path: Path
) -> None:
    """A unix socket has little room by itself, and QEMU waits in its main loop for more."""

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        await booted(stage)
        await stage.start()
        with clients(lab, tmp_path / "history") as at_work:
            await at_work.acknowledged(20)
            with bulk(lab) as sending:
                await stage.checkpoints(20)
                assert sending.poll() is None
                assert stage.state.protection is Protection.COLO
                await at_work.acknowledged(20)
                fault_at_s = time.monotonic()
                stage.primary.process.signal(signal.SIGKILL)
                await acts.failover(stage.state, None)
                await at_work.acknowledged(20)
            verdicts = at_work.verdicts(fault_at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        assert stage.state.protection is Protection.UNPROTECTED

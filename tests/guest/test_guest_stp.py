"""A failover onto a bridge with STP: the timeline claims nothing, and the LAN learns of it later.

Goal: `first-packet` means a frame beyond the bridge port, and the announcement outlives a port that
drops it. Method: the lab's bridge of the survivor gets STP with the shortest forward delay, and the
client's side counts reverse-ARP frames.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.clients import guest_spec
from support.pairs import supervised

from coloctl.check.finding import Severity
from coloctl.check.network import examine_network
from coloctl.host import open_host
from coloctl.host.packet import ETH_P_ALL, attach_filter
from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2"),
]

#: Accepts reverse ARP alone: load the EtherType, compare, keep or drop (linux/filter.h).
RARP = ((0x28, 0, 0, 12), (0x15, 0, 1, 0x8035), (0x06, 0, 0, 96), (0x06, 0, 0, 0))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-stp") as lab:
        yield lab


async def test_a_port_under_stp_delays_the_clients_and_is_not_called_reached(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> None:
    spec = guest_spec(lab, guest_image, tmp_path, qemu_builds("11.1"))
    spec = replace(spec, guest=replace(spec.guest, ready_line=guest.READY_LINE))

    client = open_host(f"netns:{lab.client}")
    async with supervised(spec) as stage, client:
        await stage.start()
        await stage.checkpoints(2)
        survivor = stage.state.ground.hosts["b"]
        slow = ["ip", "link", "set", "br0", "type", "bridge", "stp_state", "1"]
        done = await survivor.run([*slow, "forward_delay", "200"], deadline_s=5)
        assert done.code == 0, done.stderr
        warned = [
            one
            for one in await examine_network(spec, stage.state.ground.hosts)
            if "STP" in one.sentence
        ]
        assert [one.severity for one in warned] == [Severity.WARNING]
        assert "4 s" in warned[0].sentence
        with await client.make_socket(socket.AF_PACKET, socket.SOCK_RAW) as frames:
            attach_filter(frames, RARP)
            frames.bind(("lan0", ETH_P_ALL))
            frames.settimeout(0)
            timeline = await acts.failover(stage.state, "b")
            assert "first-packet" not in timeline.steps
            assert stage.state.protection is Protection.UNPROTECTED
            async with asyncio.timeout(60):
                await asyncio.get_running_loop().sock_recv(frames, 96)

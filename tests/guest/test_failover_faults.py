"""A pair on two hosts whose replication link is cut, or whose sides are lost; firmware guests.

What a link between namespaces has and loopback has not: packets that simply do not arrive.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import (
    Inventory,
    Stage,
    firmware_spec,
    guest_writes,
    holds,
    inventory,
    make_disks,
    qemu_io,
    supervised,
)

from coloctl.errors import ReplicationError
from coloctl.lab import link, qemu
from coloctl.lab.network import Lab
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import MigrationTransport, NicSpec, NodeSpec, PairSpec, Role, TapSpec
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, RunState
from coloctl.supervisor import acts
from coloctl.vm import VM

pytestmark = pytest.mark.guest

ROLES = (Role.PRIMARY, Role.SECONDARY)
BLOCK = 65536
SYS_PIDFD_GETFD = 438


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-faults") as lab:
        yield lab


@pytest.fixture
def spec(
    lab: Lab,
    qemu_builds: Callable[[str], qemu.Build],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PairSpec]:
    folder = tmp_path_factory.mktemp("f")
    build = qemu_builds("11.1")
    spec = firmware_spec(folder, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    taps = TapSpec({"a": "tap-a", "b": "tap-b"}, "br0")
    yield replace(
        spec,
        nics=(NicSpec("hn0", "52:54:00:c0:10:01", taps),),
        nodes={
            "a": NodeSpec("a", f"netns:{lab.host_a}", "10.66.0.1"),
            "b": NodeSpec("b", f"netns:{lab.host_b}", "10.66.0.2"),
        },
    )
    lab.link("replication").heal()


def taps_up(lab: Lab) -> dict[str, bool]:
    """Which of the two taps carry frames."""
    up = {}
    for ns, tap in ((lab.host_a, "tap-a"), (lab.host_b, "tap-b")):
        (device,) = link.netlink(ns, lambda ip, tap=tap: ip.get_links(ifname=tap))
        up[tap] = bool(device["flags"] & 1)
    return up


async def alone(vm: VM) -> None:
    vitals = await vm.observe()
    assert (vitals.run_state, vitals.colo_mode) == (RunState.RUNNING, COLOMode.NONE)
    left = await inventory(vm)
    assert left.objects <= {"rew0"}
    assert replace(left, nodes=set(), objects=set(), quorum=()) == Inventory()
    assert "nbd0" not in left.nodes


@pytest.mark.parametrize("survivor", ROLES)
@pytest.mark.parametrize("when", ["between checkpoints", "in a checkpoint"])
async def test_a_cut_link_is_survived_by_exactly_one(
    lab: Lab, spec: PairSpec, survivor: Role, when: str
) -> None:
    """Both still run when the link is cut; the one that is not chosen is fenced first."""

    async with supervised(spec) as stage:
        await stage.start()
        await guest_writes(stage.primary, 0x11, 0, BLOCK)
        await stage.checkpoints()
        assert taps_up(lab) == {"tap-a": True, "tap-b": False}
        with stage.primary.monitor.listen("STOP") as events:
            if when == "in a checkpoint":
                await events.next(30)
            lab.link("replication").cut()
        if when == "between checkpoints" and survivor is Role.PRIMARY:
            await qemu_io(stage.primary, f"aio_write -q -P 0x22 {BLOCK} {BLOCK}")
        # Silence is not death: it is told, and nobody is fenced until somebody says so.
        await stage.until_protection(Protection.FAILOVER)
        assert stage.state.finding.diagnosis is Diagnosis.LINK_BROKEN
        one, two = stage.primary, stage.secondary
        chosen, other = (one, two) if survivor is Role.PRIMARY else (two, one)
        assert chosen.process.alive() and other.process.alive()
        await acts.failover(stage.state, chosen.node)
        assert not other.process.alive()
        await alone(chosen)
        assert taps_up(lab) == {
            "tap-a": survivor is Role.PRIMARY,
            "tap-b": survivor is Role.SECONDARY,
        }
        assert await holds(chosen, 0x11, 0, BLOCK)

        lab.link("replication").heal()
        await stage.start()
        assert stage.state.protection is Protection.COLO
        await stage.checkpoints()


@pytest.mark.parametrize("step", ["compare", "migrate", "first checkpoint"])
async def test_a_link_that_is_cut_while_protecting_ends_the_attempt(
    lab: Lab, spec: PairSpec, step: str
) -> None:
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        primary = stage.primary
        cut = asyncio.Event()

        def cut_it() -> None:
            lab.link("replication").cut()
            cut.set()

        stage.at_step(step, cut_it)
        starting = asyncio.create_task(stage.start())
        await cut.wait()
        with pytest.raises(ReplicationError):
            await starting
        assert stage.state.protection is Protection.UNPROTECTED
        await alone(primary)
        lab.link("replication").heal()
        await stage.start()
        await stage.checkpoints()


@pytest.mark.parametrize("lost", ROLES)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_side_leaves_the_other_with_the_lan(
    lab: Lab, spec: PairSpec, lost: Role, fault: signal.Signals
) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints()
        stage.state.vm_of(lost).process.signal(fault)
        if fault is signal.SIGKILL:
            await stage.until_protection(Protection.FAILOVER)
        timeline = await acts.failover(stage.state, None)
        await alone(stage.vm(timeline.survivor))  # type: ignore[arg-type]
        assert taps_up(lab) == {
            "tap-a": lost is Role.SECONDARY,
            "tap-b": lost is Role.PRIMARY,
        }


def stream_options(stage: Stage, spec: PairSpec) -> dict[str, bool]:
    """TCP_NODELAY of both ends of the migration stream, as each QEMU holds it."""
    found: dict[str, bool] = {}
    port = spec.replication.migration_port()
    for node in ("a", "b"):
        pid = stage.vm(node).process.identity.pid  # type: ignore[arg-type]
        for sock in _sockets(pid):
            with sock, suppress(OSError):
                if sock.family is socket.AF_INET and port in (
                    sock.getsockname()[1],
                    sock.getpeername()[1],
                ):
                    nodelay = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    found[node] = found.get(node, True) and bool(nodelay)
    return found


def _sockets(pid: int) -> Iterator[socket.socket]:
    """Every socket of that process, shared with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()).startswith("socket:"):
                    fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(entry.name), 0)
                    if fd < 0:
                        raise OSError(ctypes.get_errno(), "pidfd_getfd")
                    yield socket.socket(fileno=fd)
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("channel", MigrationTransport)
async def test_the_stream_of_coloctl_s_own_sockets_does_not_delay(
    spec: PairSpec, channel: MigrationTransport
) -> None:
    """Which is what makes them worth opening: QEMU's own have Nagle's delay."""
    spec = replace(spec, replication=replace(spec.replication, channel=channel))

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints(1)
        wanted = channel is MigrationTransport.FD
        assert stream_options(stage, spec) == {"a": wanted, "b": wanted}

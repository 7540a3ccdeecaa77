"""Another local user tries everything that a pair has to offer, and gets nothing and stops nothing.

The user is nobody, on the hosts of the pair and beside them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyroute2.nftables.main import NFTables
from support.pairs import Stage, firmware_spec, guest_writes, holds, make_disks, supervised
from support.stranger import FLOOD, NBD, TAKE, stranger

from coloctl.colo import guard, peers
from coloctl.errors import ReplicationError
from coloctl.lab import layout, netns, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import NODES, NodeName, NodeSpec, PairSpec, Role
from coloctl.model.protection import Protection
from coloctl.model.strangers import summary
from coloctl.model.wires import Endpoint, SocketFile, Wires
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="other users and namespaces need root"),
]

BLOCK = 65536
WRITTEN = 0x11


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-stranger") as lab:
        yield lab


def on_two_hosts(lab: Lab, spec: PairSpec) -> PairSpec:
    nodes: dict[NodeName, NodeSpec] = {
        "a": NodeSpec("a", f"netns:{lab.host_a}", layout.REPLICATION_A),
        "b": NodeSpec("b", f"netns:{lab.host_b}", layout.REPLICATION_B),
    }
    return replace(spec, nodes=nodes)


@pytest.fixture
def spec(tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    build = qemu_builds("11.1")
    spec = firmware_spec(tmp_path, build, "tcg", automatic=True)
    asyncio.run(make_disks(spec, build.img))
    return spec


def doors(spec: PairSpec) -> list[list[Any]]:
    """Every TCP address of the pair, whether somebody listens there or not."""
    ports = Wires(spec, Path("/")).ports()
    return [[spec.nodes[node].address, port] for node in NODES for port in ports]


def exports(spec: PairSpec) -> list[list[Any]]:
    return [[spec.nodes[node].address, spec.replication.nbd_port()] for node in NODES]


def beacons(spec: PairSpec) -> list[list[Any]]:
    return [[spec.nodes[node].address, spec.replication.heartbeat_port()] for node in NODES]


async def attacked(program: str, given: list[Any], **words: Any) -> list[dict[str, Any]]:
    """What the stranger said that it got, once it was through."""

    def attack() -> list[dict[str, Any]]:
        with stranger(program, given, **words) as said:
            return said

    return await asyncio.to_thread(attack)


async def carries_on(stage: Stage) -> None:
    """The pair is protected, has never failed over, and takes checkpoints."""
    assert stage.state.protection is Protection.COLO
    assert stage.state.generation == 0
    assert "FAILED_OVER" not in [name for name, _ in stage.events]
    await stage.checkpoints()


async def reprotect(stage: Stage) -> None:
    await acts.reprotect(stage.state, stage.supervisor.watch, stage.supervisor.entered)


async def test_a_stranger_on_both_hosts_gets_nothing(lab: Lab, spec: PairSpec) -> None:
    """NBD, migration, mirror, compare and beacon, before the secondary comes and in COLO."""
    spec = on_two_hosts(lab, spec)
    places = (lab.host_a, lab.host_b, lab.client)

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        with ExitStack() as staying:
            for place in places:  # those who come first, and stay
                said = staying.enter_context(stranger(TAKE, doors(spec), namespace=place))
                assert [one for one in said if one["got"]] == []
            await reprotect(stage)
        await guest_writes(stage.primary, WRITTEN, 0, BLOCK)
        await stage.checkpoints()
        for program, at, words in (
            (TAKE, doors(spec), {}),
            (NBD, exports(spec), {"write": True}),
        ):
            attacks = (attacked(program, at, namespace=place, **words) for place in places)
            for said in await asyncio.gather(*attacks):
                assert [one for one in said if one["got"]] == []
        await carries_on(stage)
        for place in (lab.host_a, lab.host_b):
            for rate in (4000, 50_000):
                await attacked(FLOOD, beacons(spec), namespace=place, seconds=3.0, rate=rate)
                await carries_on(stage)
        assert await holds(stage.primary, WRITTEN, 0, BLOCK)
        assert all(map(rules, (lab.host_a, lab.host_b)))
    assert not any(map(rules, (lab.host_a, lab.host_b)))


async def test_what_ends_elsewhere_lifts_no_rule_of_a_pair_that_lives(
    lab: Lab, spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair of the same name under another state folder, refused or ended there."""
    spec = on_two_hosts(lab, spec)

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        there = rules(lab.host_a)
        assert there
        ground = stage.state.ground
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("COLOCTL_STATE_DIR", "/run/elsewhere")
            await guard.lift(ground.wires(spec), ground.hosts)
        assert rules(lab.host_a) == there


def rules(namespace: str) -> set[str]:
    """The tables of packet rules that a host has for pairs."""

    def look() -> set[str]:
        with NFTables(nfgen_family=2) as nft:
            names = {str(table.get_attr("NFTA_TABLE_NAME")) for table in nft.get_tables()}
        return {name for name in names if name.startswith("coloctl-")}

    return netns.inside(namespace, look)


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder in a place that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="coloctl-t-", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


async def test_a_pair_on_one_host_has_no_port_and_no_socket_for_strangers(
    reachable: Path, spec: PairSpec
) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        await guest_writes(stage.primary, WRITTEN, 0, BLOCK)
        folder = stage.state.ground.folder
        for node in NODES:
            host = stage.state.ground.hosts[node]
            assert not await host.ports_in_use(spec.nodes[node].address) & set(
                range(spec.replication.base_port, spec.replication.base_port + 100)
            )
        files = [str(path) for path in folder.rglob("*.sock")]
        wire = Wires(spec, folder).exports("b")
        assert isinstance(wire, SocketFile)
        assert str(wire.path) in files
        assert len(files) >= 8  # monitors, loops, mirror, compare and export
        said = await attacked(TAKE, files)
        assert {one["why"] for one in said} == {"[Errno 13] Permission denied"}
        said = await attacked(NBD, [str(wire.path)], write=True)
        assert [one for one in said if one["got"]] == []
        await attacked(FLOOD, beacons(spec), seconds=2.0, rate=0)
        await carries_on(stage)


def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes no packet rules."""

    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr(guard, "raise_guard", none)


async def test_who_came_first_is_turned_away_where_no_rule_keeps_strangers_out(
    lab: Lab, spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = on_two_hosts(lab, spec)
    unguarded(monkeypatch)
    wires = Wires(spec, Path("/"))
    slots = [[at.address, at.port] for at in (wires.mirror("a", 0), wires.compare("a", 0))]  # type: ignore[union-attr]

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        with stranger(TAKE, slots, namespace=lab.host_a) as said:
            assert all(one["got"] for one in said)
            await reprotect(stage)
        await carries_on(stage)
        said = summary(stage.state.view().turned_away)
        assert said.startswith(f"{len(slots)} strangers were cut off"), said
        journal = (stage.state.ground.folder / "journal.jsonl").read_text()
        assert journal.count('"stranger"') == len(slots)


async def test_a_flood_of_datagrams_changes_nothing_where_no_rule_keeps_it_out(
    lab: Lab, spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,000 a second once made a pair fail over every second; the kernel drops them unread now."""
    spec = on_two_hosts(lab, spec)
    unguarded(monkeypatch)

    async with supervised(spec) as stage:
        await stage.start()
        for place in (lab.host_a, lab.host_b):
            for rate in (4000, 50_000):
                (told,) = await attacked(
                    FLOOD, beacons(spec), namespace=place, seconds=3.0, rate=rate
                )
                assert told["sent"] > 3000, told
                print(f"{place}: {told['sent'] / 3:.0f} datagrams a second were sent")
                await carries_on(stage)


#: Comes again whenever it is turned away, with many connections at a time.
PERSIST = """
import select
say(done=True)
poll, held = select.poll(), {}

def come():
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(tuple(given[0]))
    held[sock.fileno()] = sock
    poll.register(sock, select.POLLRDHUP)

for _ in range(64):
    come()
while True:
    for number, _ in poll.poll(20):
        poll.unregister(number)
        held.pop(number).close()
        come()
"""


async def test_a_pair_is_never_called_protected_while_a_stranger_holds_a_slot(
    lab: Lab, spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is faster: the secondary has the slot, or the guest is known to run alone."""
    spec = on_two_hosts(lab, spec)
    unguarded(monkeypatch)
    monkeypatch.setattr(peers, "CONNECT_WAIT_S", 3.0)
    wires = Wires(spec, Path("/"))
    slot = wires.compare("a", 0)
    assert isinstance(slot, Endpoint)

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        with stranger(PERSIST, [[slot.address, slot.port]], namespace=lab.host_a):
            try:
                await reprotect(stage)
            except ReplicationError as error:
                assert f"{slot} does not lead to node b's QEMU" in error.message
                assert stage.state.protection is Protection.UNPROTECTED
                assert stage.state.seat_of(Role.SECONDARY) is None
            else:
                host = stage.state.ground.hosts["a"]
                primary = stage.primary.process.identity
                secondary = stage.secondary.process.identity
                friends = await stage.secondary.host.calls(secondary, slot)
                assert friends is not None
                callers = await host.callers(primary, slot, friends)
                assert [one.friend for one in callers or ()] == [True]
        if stage.state.protection is Protection.UNPROTECTED:
            await reprotect(stage)
        await carries_on(stage)


def test_half_a_write_does_not_keep_a_failover_waiting(
    lab: Lab,
    tmp_path: Path,
    qemu_build: qemu.Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An NBD client of a secondary holds it open, as a stranger would, or a peer cut off."""
    if qemu_build.name != "11.1" and not os.access("/dev/kvm", os.W_OK):
        pytest.skip(f"COLO of QEMU {qemu_build.name} needs KVM")
    accel = "tcg" if qemu_build.name == "11.1" else "kvm"
    spec = on_two_hosts(lab, firmware_spec(tmp_path, qemu_build, accel))
    asyncio.run(make_disks(spec, qemu_build.img))
    unguarded(monkeypatch)

    async def check() -> None:
        async with supervised(spec) as stage:
            await stage.start()
            await guest_writes(stage.primary, WRITTEN, 0, BLOCK)
            await stage.checkpoints()
            at = [[layout.REPLICATION_B, spec.replication.nbd_port()]]
            with stranger(NBD, at, namespace=lab.host_b, write=False) as said:
                assert [one["got"] for one in said] == ["read", "half a write"]
                await stage.primary.kill(10)
                await stage.until_protection(Protection.FAILOVER)
                await acts.failover(stage.state, None)
            assert stage.state.protection is Protection.UNPROTECTED
            assert stage.primary.node == "b"
            assert await holds(stage.primary, WRITTEN, 0, BLOCK)

    asyncio.run(check())


def came_and_went(where: list[Any]) -> None:
    """Connect and leave, as a scan of ports does."""
    socket.create_connection(tuple(where), timeout=5).close()


async def test_a_slot_is_free_again_when_a_stranger_has_left_it(
    lab: Lab, spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU reads nothing from mirror0, so it does not notice that the client is gone."""
    spec = on_two_hosts(lab, spec)
    unguarded(monkeypatch)
    wires = Wires(spec, Path("/"))
    slots = [[at.address, at.port] for at in (wires.mirror("a", 0), wires.compare("a", 0))]  # type: ignore[union-attr]

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        for slot in slots:
            await asyncio.to_thread(netns.inside, lab.host_b, partial(came_and_went, slot))
        await reprotect(stage)
        await carries_on(stage)

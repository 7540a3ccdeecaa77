"""A pair in COLO whose every wire is encrypted, on two hosts of the lab, each with its certificate.

Goal: nothing of the guest crosses the link in plain, no other machine gets in, and the pair does
all that a plain one does. Method: firmware guests under QEMU 11.1, every wire listened to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support.certificates import Authority, files
from support.pairs import (
    PATIENCE_S,
    Stage,
    firmware_spec,
    guest_writes,
    holds,
    make_disks,
    supervised,
)
from support.stranger import TAKE, stranger
from support.wiretap import tapped

from coloctl.colo import guard
from coloctl.errors import PreconditionFailed
from coloctl.lab import layout, netns, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import MigrationTransport, NodeName, NodeSpec, PairSpec, Policy, Role
from coloctl.model.protection import Protection
from coloctl.model.strangers import summary
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.model.verified import VerifyOutcome
from coloctl.nbd.client import connect
from coloctl.nbd.wire import NBDFailed
from coloctl.qmp import command as qmp
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

BLOCK = 65536
WRITTEN = 0x5D
PATTERN = bytes([WRITTEN]) * 256
ADDRESSES: dict[NodeName, str] = {"a": layout.REPLICATION_A, "b": layout.REPLICATION_B}
NAMES: dict[NodeName, str] = {"a": "hv1", "b": "hv2"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-tls") as lab:
        yield lab


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """An authority that has made a certificate for each node, in its own folder."""
    ca = Authority.new()
    for node, name in NAMES.items():
        ca.machine(tmp_path / name, name, ADDRESSES[node])
    return ca


@pytest.fixture
def plain(lab: Lab, tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    """The pair on two hosts, not encrypted."""
    build = qemu_builds("11.1")
    spec = firmware_spec(tmp_path, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    hosts = {"a": lab.host_a, "b": lab.host_b}
    nodes: dict[NodeName, NodeSpec] = {
        node: NodeSpec(node, f"netns:{hosts[node]}", address) for node, address in ADDRESSES.items()
    }
    return replace(spec, nodes=nodes)


@pytest.fixture
def spec(plain: PairSpec, ca: Authority, tmp_path: Path) -> PairSpec:
    """The same, encrypted."""
    folders: dict[NodeName, Path] = {node: tmp_path / name for node, name in NAMES.items()}
    return replace(plain, tls=TlsSpec(TlsMode.ON, folders=folders, names=NAMES))


async def reprotect(stage: Stage) -> None:
    await stage.until(lambda: not stage.state.act)
    await acts.reprotect(stage.state, stage.supervisor.watch, stage.supervisor.entered)
    await stage.until_protection(Protection.COLO)


async def serials(stage: Stage, node: NodeName) -> set[str]:
    """The serials of the credentials that a node's QEMU has."""
    listed = await stage.vm(node).execute(qmp.qom_list("/objects"))
    names = [str(one["name"]) for one in listed]
    return {name.removeprefix("tls-client-") for name in names if name.startswith("tls-client-")}


async def written_and_compared(stage: Stage, offset: int) -> None:
    """The guest writes in COLO, and both disks hold it after a checkpoint."""
    await guest_writes(stage.primary, WRITTEN, offset, BLOCK)
    await stage.checkpoints()
    verified = await stage.supervisor.verifying.verify()
    assert verified.outcome is VerifyOutcome.EQUAL, verified


async def test_a_plain_pair_shows_what_the_encrypted_one_must_hide(
    lab: Lab, plain: PairSpec
) -> None:
    """The control: this wiretap sees the guest's bytes where they cross in plain."""
    with tapped(lab.host_a, "replication", PATTERN) as tap:
        async with supervised(plain) as stage:
            await stage.start()
            await guest_writes(stage.primary, WRITTEN, 0, BLOCK)
            await stage.checkpoints()
    ports = plain.replication
    assert ports.nbd_port() in tap.seen
    assert any(data.startswith(b"QEVM") for data in tap.of_port(ports.migration_port()))


async def test_every_wire_is_encrypted_through_two_changes_of_roles(
    lab: Lab, spec: PairSpec
) -> None:
    ports = spec.replication
    with tapped(lab.host_a, "replication", PATTERN) as tap:
        async with supervised(spec) as stage:
            await stage.start()
            await written_and_compared(stage, 0)
            for turn in (1, 2):
                await acts.switchover(stage.state, stage.supervisor.watch, stage.supervisor.entered)
                await stage.until_protection(Protection.COLO)
                await written_and_compared(stage, turn * BLOCK)
                assert await holds(stage.primary, WRITTEN, 0, (turn + 1) * BLOCK)
            assert stage.state.vm_of(Role.PRIMARY).node == "a"
    assert tap.packets > 100
    assert not tap.seen
    for port in (ports.migration_port(), ports.mirror_port(0), ports.compare_port(0)):
        streams = [data for data in tap.of_port(port) if data]
        # At least one connection per role and two directions each: handshakes in both.
        assert len(streams) >= 6, port
        assert all(data[:2] == b"\x16\x03" for data in streams), (port, streams)
    disks = [data for data in tap.of_port(ports.nbd_port()) if data]
    greetings = [data for data in disks if data.startswith(b"NBDMAGIC")]
    assert greetings and len(disks) > len(greetings)


async def test_a_replica_gets_what_differs_over_tls_after_each_loss(
    lab: Lab, spec: PairSpec
) -> None:
    """Either QEMU is killed in COLO; the guest runs on, and its disk goes over by difference."""
    with tapped(lab.host_a, "replication", PATTERN) as tap:
        async with supervised(replace(spec, policy=Policy(auto_reprotect=False))) as stage:
            await stage.start()
            await guest_writes(stage.primary, WRITTEN, 0, BLOCK)
            await stage.checkpoints()
            for turn, lost in ((1, Role.SECONDARY), (2, Role.PRIMARY), (3, Role.SECONDARY)):
                os.kill(stage.state.vm_of(lost).process.identity.pid, signal.SIGKILL)
                await stage.until_protection(Protection.UNPROTECTED)
                await guest_writes(stage.primary, WRITTEN, turn * BLOCK, BLOCK)
                await reprotect(stage)
                assert "by difference" in stage.state.copied or "differ" in stage.state.copied
                assert await holds(stage.primary, WRITTEN, 0, (turn + 1) * BLOCK)
                await written_and_compared(stage, (turn + 1) * BLOCK)
    assert tap.packets > 100 and not tap.seen


async def test_other_machines_get_into_no_wire(
    lab: Lab, spec: PairSpec, ca: Authority, tmp_path: Path
) -> None:
    """A plain client, one of another authority, and one of this authority that is no node."""
    port = spec.replication.nbd_port()
    at = {"address": ADDRESSES["b"], "port": port, "export": "parent0"}
    third = ca.machine(tmp_path / "third", "third", "10.66.0.3")
    stranger = Authority.new().machine(tmp_path / "stranger", "hv1", ADDRESSES["a"])
    (stranger / "ca-cert.pem").write_bytes(ca.credentials.cert)

    def attempt(at: dict[str, object]) -> str:
        with pytest.raises(NBDFailed) as refused:
            connect(at, ["base:allocation"])
        return refused.value.message

    async with supervised(spec) as stage:
        await stage.start()
        for given in (
            at,
            {**at, "tls": files(third, "hv2").document()},
            {**at, "tls": files(stranger, "hv2").document()},
        ):
            await asyncio.to_thread(netns.inside, lab.host_a, partial(attempt, given))
        good = {**at, "tls": files(tmp_path / "hv1", "hv2").document()}
        one = await asyncio.to_thread(netns.inside, lab.host_a, partial(connect, good))
        one.close()
        await stage.checkpoints()
        assert stage.state.protection is Protection.COLO


def spoiled(what: str, ca: Authority, tmp_path: Path) -> str:
    """Make one thing of node b's certificate wrong; return a part of the sentence about it."""
    there = tmp_path / "hv2"
    if what == "missing":
        (there / "cert.pem").unlink()
        return f"there is no {there / 'cert.pem'}"
    if what == "ended":
        ca.machine(there, "hv2", ADDRESSES["b"], age_days=400)
        return "ended on"
    if what == "name":
        ca.machine(there, "hv9", ADDRESSES["b"])
        return "is for hv9, not for hv2"
    if what == "address":
        ca.machine(there, "hv2", "10.66.0.9")
        return "does not name the address 10.66.0.2"
    if what == "authority":
        Authority.new().machine(there, "hv2", ADDRESSES["b"])
        return "come from different authorities"
    assert what == "key"
    (there / "key.pem").write_bytes((tmp_path / "hv1" / "key.pem").read_bytes())
    return "is not the key of the certificate"


@pytest.mark.parametrize("what", ["missing", "ended", "name", "address", "authority", "key"])
async def test_a_pair_whose_certificates_are_wrong_does_not_start(
    what: str, spec: PairSpec, ca: Authority, tmp_path: Path
) -> None:
    sentence = spoiled(what, ca, tmp_path)
    async with supervised(spec) as stage:
        with pytest.raises(PreconditionFailed) as refused:
            await stage.start()
        assert sentence in refused.value.message
        assert all(seat.vm is None for seat in stage.state.seats.values())


async def test_a_guest_runs_on_alone_when_its_certificates_end_meanwhile(
    spec: PairSpec, ca: Authority, tmp_path: Path
) -> None:
    """It is not protected half: the sentence is the reason, and a renewed one brings COLO."""
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        first = await serials(stage, "a")
        ca.machine(tmp_path / "hv2", "hv2", ADDRESSES["b"], age_days=400)
        with pytest.raises(PreconditionFailed, match="ended on"):
            await reprotect(stage)
        assert stage.state.protection is Protection.UNPROTECTED
        for node, name in NAMES.items():
            ca.machine(tmp_path / name, name, ADDRESSES[node])
        await reprotect(stage)
        assert len(first | await serials(stage, "a")) == 2
        assert len(await serials(stage, "a")) == 1
        await written_and_compared(stage, 0)


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes no packet rules: TLS alone keeps strangers out."""

    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr(guard, "raise_guard", none)


def slots(spec: PairSpec) -> list[list[object]]:
    """The addresses at which a primary takes one client each."""
    ports = spec.replication
    return [[ADDRESSES["a"], ports.mirror_port(0)], [ADDRESSES["a"], ports.compare_port(0)]]


@pytest.mark.usefixtures("unguarded")
async def test_a_silent_client_in_a_slot_is_cut_off(lab: Lab, spec: PairSpec) -> None:
    """QEMU waits for its handshake for ever, and for the secondary's only after it has gone."""
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        with stranger(TAKE, slots(spec), namespace=lab.host_b) as said:
            assert all(one["got"] for one in said)
            await reprotect(stage)
        await stage.checkpoints()
        turned_away = summary(stage.state.view().turned_away)
        assert turned_away.startswith("2 strangers were cut off"), turned_away


def shake_hands(where: list[object], machine: Path, answer_s: float = PATIENCE_S) -> bytes:
    """Connect to a slot with the certificate of ``machine``; return what comes in ``answer_s``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(machine / "cert.pem", machine / "key.pem")
    address, port = where
    with (
        socket.create_connection((str(address), int(str(port))), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain) as sock,
    ):
        sock.sendall(struct.pack(">I", 4) + b"evil")
        sock.settimeout(answer_s)
        return sock.recv(1)


@pytest.mark.usefixtures("unguarded")
async def test_a_slot_takes_neither_another_authority_nor_a_machine_that_is_no_node(
    lab: Lab, spec: PairSpec, ca: Authority, tmp_path: Path
) -> None:
    third = ca.machine(tmp_path / "third", "third", ADDRESSES["b"])
    stranger = Authority.new().machine(tmp_path / "stranger", "hv2", ADDRESSES["b"])
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        for where in slots(spec):
            for machine in (third, stranger):
                attempt = partial(netns.inside, lab.host_b, partial(shake_hands, where, machine))
                # Refused in the handshake, or by an alert or an end after it.
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    assert await asyncio.to_thread(attempt) == b""
            # The node itself is let in: it waits for bytes that never come.
            let_in = partial(
                netns.inside, lab.host_b, partial(shake_hands, where, tmp_path / "hv2", 1.0)
            )
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(let_in)
        await reprotect(stage)
        await stage.checkpoints()
        assert stage.state.view().turned_away is None


async def test_a_stream_that_qemu_connects_itself_is_encrypted_as_well(
    lab: Lab, spec: PairSpec
) -> None:
    spec = replace(spec, replication=replace(spec.replication, channel=MigrationTransport.TCP))
    with tapped(lab.host_a, "replication", PATTERN) as tap:
        async with supervised(spec) as stage:
            await stage.start()
            await written_and_compared(stage, 0)
    streams = [data for data in tap.of_port(spec.replication.migration_port()) if data]
    assert len(streams) == 2
    assert all(data[:2] == b"\x16\x03" for data in streams)
    assert not tap.seen

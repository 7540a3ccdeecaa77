"""Attackers in every place from which a pair can be reached get nothing, and keep no slot.

Goal: on machines of the lab and on the hosts of the ordinary one, another local user, another
machine on the replication network (also under the peer's address) and a client on the guest LAN
try every wire in plain, with a certificate of another authority, and with one of this authority
for another name. None gets in; the pair is protected and serves after each. Method: a pair under a
supervisor process; `-s` prints the table of attempts.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import sshhost
from support.attackers import INSIST, Place, Table, also, believed, known, legs, mac_of
from support.certificates import Authority
from support.clients import ask
from support.stranger import FLOOD, NOBODY, TAKE

from coloctl import pairfile
from coloctl.certs import store
from coloctl.certs.issue import Credentials
from coloctl.lab import guest, layout, machine_pair, machine_store, qemu, sample
from coloctl.lab.machine_layout import ADDRESSES, MACHINES, NAMES
from coloctl.lab.machines import Machines
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

#: A start boots the guest under TCG; a busy machine has been seen to need a minute.
VERB_S = 240.0
PEER = layout.REPLICATION_B
THIRD = "10.66.0.3"


def coloctl(*words: str | Path, codes: Sequence[int] = (0,)) -> str:
    """Type a verb that ends with one of ``codes``, and return what it printed."""
    argv = [sys.executable, "-m", "coloctl.cli.main", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=VERB_S, check=False)
    assert done.returncode in codes, done.stderr + done.stdout
    return done.stdout


@dataclass(frozen=True)
class Attacked:
    """A pair under a supervisor process, and the lab in which it runs."""

    file: Path
    lab: Lab
    spec: PairSpec
    metrics: int

    def view(self) -> dict[str, Any]:
        # The exit code 3 says that the pair is not protected.
        return dict(json.loads(coloctl("status", self.spec.name, "-f", "json", codes=(0, 3))))

    def protect(self) -> None:
        """Protect the guest, unless it is."""
        if self.view()["protection"] != "colo":
            coloctl("start", self.file)
        assert self.view()["protection"] == "colo"

    async def carries_on(self, generation: int) -> None:
        """The pair is protected, has never failed over, takes checkpoints, and serves."""
        seen = await asyncio.to_thread(self.view)
        assert (seen["protection"], seen["generation"]) == ("colo", generation), seen
        await asyncio.to_thread(coloctl, "checkpoint", self.spec.name)
        assert await ask(self.lab, "PING") == "+PONG"

    def wires(self) -> list[tuple[str, str, int]]:
        """Each wire with a port: its name, what is spoken there, and the port."""
        ports = self.spec.replication
        return [
            ("NBD", "nbd", ports.nbd_port()),
            ("migration", "stream", ports.migration_port()),
            ("mirror", "stream", ports.mirror_port(0)),
            ("compare", "stream", ports.compare_port(0)),
            ("beacon", "datagrams", ports.heartbeat_port()),
            ("metrics", "request", self.metrics),
        ]

    def doors(self) -> list[list[Any]]:
        """Every TCP address of the pair."""
        tcp = [port for _, kind, port in self.wires() if kind in ("nbd", "stream")]
        return [[one.address, port] for one in self.spec.nodes.values() for port in tcp]

    def slots(self) -> list[list[Any]]:
        """The addresses at which node a's QEMU takes one client each."""
        ports = self.spec.replication
        return [[layout.REPLICATION_A, p] for p in (ports.mirror_port(0), ports.compare_port(0))]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every user may enter, for a pair's file and its state."""
    with tempfile.TemporaryDirectory(prefix="coloctl-t-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def at_work(file: Path, lab: Lab, folder: Path, environment: dict[str, str]) -> Iterator[Attacked]:
    """The pair of that file runs alone under a supervisor with metrics, and ends afterwards."""
    spec = pairfile.load(file)
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLOCTL_STATE_DIR": str(folder / "s"), **environment}.items():
            patch.setenv(name, value)
        coloctl("start", file, "--no-protect", "--metrics", f":{metrics}")
        try:
            end = time.monotonic() + VERB_S
            while asyncio.run(ask(lab, "PING")) != "+PONG":
                assert time.monotonic() < end, "the guest does not serve"
            yield Attacked(file, lab, spec, metrics)
        finally:
            coloctl("stop", spec.name, "--force", "--yes")


def pem(made: Credentials) -> str:
    return (made.cert + made.key).decode()


# -- machines of the lab


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with Machines.up(f"t{os.getpid()}-at") as standing:
        yield standing


@pytest.fixture(scope="module")
def on_machines(
    machines: Machines,
    guest_image: guest.GuestImage,
    folder: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> Iterator[Attacked]:
    """The lab's guest on hv1 and hv2, all its wires encrypted."""
    binary = qemu_builds("11.1").binary
    file = machine_pair.write(
        folder / "web.toml", name="web", lab=machines, guest=guest_image, qemu=binary, accel="tcg"
    )
    yield from at_work(file, machines, folder, {"COLOCTL_SSH": shlex.join(machines.ssh())})


@pytest.fixture(scope="module")
def identities(machines: Machines) -> dict[str, str]:
    """Certificates that look right: node b's name by another CA, and another name by the CA."""
    ca = store.Authority(machine_store.home(machines.name) / "ca")
    third = ca.provide("witness", [THIRD, PEER], datetime.now(UTC)).folder
    return {
        "foreign CA": pem(Authority.new().issue("hv2", PEER)),
        "other name": (third / store.CERT).read_text() + (third / store.KEY).read_text(),
    }


def of_node_b(machines: Machines) -> str:
    """What node b itself proves itself by."""
    folder = machine_store.home(machines.name) / "ca" / "machines" / "hv2"
    return (folder / store.CERT).read_text() + (folder / store.KEY).read_text()


async def test_a_machine_with_the_peers_address_gets_in_nowhere_and_keeps_no_slot(
    on_machines: Attacked, machines: Machines, identities: dict[str, str]
) -> None:
    """Packet rules take it for the peer, before the peer's QEMU is there: certificates do not.

    hv1 believes that the third machine has 10.66.0.2. What stays silent in a slot is cut off when
    the pair is protected, and those who insist from elsewhere meanwhile change nothing.
    """
    pair, table = on_machines, Table(identities)
    assert pair.view()["protection"] == "unprotected"
    leg, generation = "leg-repl-b", pair.view()["generation"]
    place = Place("peer's address", None, machines.third, PEER, (layout.REPLICATION_A,))
    tcp = [wire for wire in pair.wires() if wire[1] != "datagrams"]
    with legs(machines, THIRD), ExitStack() as staying:
        with (
            also(machines.third, leg, PEER),
            believed(machines.host_a, "repl-a", PEER, mac_of(machines.third, leg)),
        ):
            await table.attack(place, tcp, together=False)
            assert table.gained == []
            # The method sees who gets in: the node itself would.
            control = Table({"node b": of_node_b(machines)})
            await control.attack(place, [w for w in tcp if w[0] == "compare"], together=False)
            assert [one["where"][4] for _, one in control.gained] == ["node b"], control.said
            said = staying.enter_context(place.runs(TAKE, pair.slots(), source=PEER))
            assert all(one["got"] for one in said), said
        for name in ("hv1", "hv2"):
            staying.enter_context(Place(name, machines.machine(name)).runs(INSIST, pair.doors()))
        insisting = Place("third", None, machines.third)
        staying.enter_context(insisting.runs(INSIST, pair.doors()))
        await asyncio.to_thread(pair.protect)
    assert pair.view()["turned_away"]["count"] >= len(pair.slots())
    print(f"\n{table}")
    await pair.carries_on(generation)


def secrets_of(machines: Machines, name: str) -> list[tuple[str, str]]:
    """What a machine has that only root may reach: sockets by their wire, and files."""
    words = ["find", "/run/coloctl", "/etc/coloctl", "/var/lib/coloctl", "-printf", "%y %p\\n"]
    with machines.machine(name).popen(words, stdout=subprocess.PIPE, text=True) as found:
        lines = found.communicate()[0].splitlines()
    return [one for line in lines if (one := _secret(*line.split(" ", 1))) is not None]


#: Sockets that belong to one wire, by the beginning of their names.
SOCKETS = {"qmp": "QMP", "rescue": "QMP", "control": "control socket", "agent": "agent socket"}


def _secret(kind: str, path: str) -> tuple[str, str] | None:
    if kind == "s":
        name = path.rpartition("/")[2]
        return next((w for start, w in SOCKETS.items() if name.startswith(start)), "socket"), path
    # Beside an image lies the number of its generation, which is no secret.
    return ("a file", path) if kind == "f" and not path.endswith(".generation") else None


def beside(folder: Path) -> list[tuple[str, str]]:
    """The sockets and files of a supervisor's machine."""
    files = ((path.is_socket(), path) for path in folder.rglob("*") if not path.is_dir())
    found = (_secret("s" if is_socket else "f", str(path)) for is_socket, path in files)
    return [one for one in found if one is not None]


async def flooded(pair: Attacked, place: Place) -> None:
    """Send as many datagrams to the beacons as one place can."""
    port = pair.spec.replication.heartbeat_port()
    at = [[address, port] for address in place.targets]

    def flood() -> None:
        with place.runs(FLOOD, at, seconds=2.0, rate=0):
            pass

    await asyncio.to_thread(flood)


def reached_by_ssh(machines: Machines, name: str, user: str, address: str) -> str:
    """Log in from that machine as nobody, who has no key; returns what ssh says."""
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    words += ["ssh", "-F", "none", *(w for o in options for w in ("-o", o)), f"{user}@{address}"]
    with machines.machine(name).popen([*words, "true"], stderr=subprocess.PIPE, text=True) as ssh:
        said = str(ssh.communicate(timeout=VERB_S)[1])
    assert ssh.returncode == 255, said
    return said


async def test_attackers_on_machines_of_the_lab_get_nothing(
    on_machines: Attacked, machines: Machines, folder: Path, identities: dict[str, str]
) -> None:
    """Every wire from every place, while the pair is protected."""
    pair, table = on_machines, Table(identities)
    await asyncio.to_thread(pair.protect)
    generation = pair.view()["generation"]
    own = ("127.0.0.1", layout.REPLICATION_A, layout.REPLICATION_B)
    users = [Place(f"user on {n}", machines.machine(n), targets=own) for n in ("hv1", "hv2")]
    third = Place("third machine", None, machines.third, THIRD)
    spoofed = Place("peer's address", None, machines.third, PEER, (layout.REPLICATION_A,))
    client = Place("guest LAN", None, machines.client, layout.CLIENT)
    beyond = replace(client, name="guest LAN, peer's", source=PEER, targets=spoofed.targets)
    for place in users:
        await table.attack(place, pair.wires())
        assert place.machine is not None
        secret = secrets_of(machines, place.machine.name)
        assert {"QMP", "agent socket", "a file"} <= {wire for wire, _ in secret}
        await table.files(place, secret)
        await pair.carries_on(generation)
    here = Place("beside supervisor", targets=("127.0.0.1",))
    await table.attack(here, pair.wires())
    secret = beside(folder / "s")
    assert {"control socket", "a file"} <= {wire for wire, _ in secret}
    await table.files(here, secret)
    with legs(machines, THIRD):
        await table.attack(third, pair.wires())
        await flooded(pair, third)
        await pair.carries_on(generation)
        # Without a word of Ethernet that would lead the real peer's packets elsewhere.
        hosts = {end.address: end for end in MACHINES.wires["replication"].ends}
        with also(machines.third, "leg-repl-b", PEER):
            known(machines.third, "leg-repl-b", layout.REPLICATION_A, _mac(hosts, "hv1"))
            await table.attack(spoofed, pair.wires())
            await flooded(pair, spoofed)
        await pair.carries_on(generation)
    for address, name in zip(client.targets, MACHINES.hosts, strict=True):
        known(machines.client, "lan0", address, MACHINES.bridge_macs[name])
    await table.attack(client, pair.wires())
    with also(machines.client, "lan0", PEER):
        await table.attack(beyond, pair.wires())
        await flooded(pair, beyond)
    await pair.carries_on(generation)
    for name in NAMES:
        for target in ("hv1", "hv2"):
            said = await asyncio.to_thread(
                reached_by_ssh, machines, name, "root", ADDRESSES[target]
            )
            assert "Permission denied" in said
            table.tried["ssh", f"user on {name}"] += 1
    print(f"\n{table}")
    assert table.gained == []
    await pair.carries_on(generation)


def _mac(ends: dict[str | None, Any], role: str) -> str:
    return next(str(end.mac) for end in ends.values() if end.role == role)


# -- the hosts of the ordinary lab


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-ah") as standing:
        yield standing


@pytest.fixture
def on_hosts(
    hosts: Lab,
    guest_image: guest.GuestImage,
    folder: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> Iterator[Attacked]:
    """The same guest on two hosts that share this machine's files, its wires in plain."""
    file = sample.write_pair(
        folder / "own.toml",
        name="own",
        lab=hosts,
        guest=guest_image,
        qemu=qemu_builds("11.1").binary,
        accel="tcg",
        checkpoint_delay_ms=500,
    )
    yield from at_work(file, hosts, folder, {})


async def test_attackers_on_the_hosts_of_the_lab_get_nothing(
    on_hosts: Attacked, hosts: Lab, folder: Path
) -> None:
    """Other users of both hosts and of the client's, before, while and after it is protected."""
    pair = on_hosts
    table = Table({"foreign CA": pem(Authority.new().issue("hv2", PEER))})
    generation = pair.view()["generation"]
    names = {"user on host-a": hosts.host_a, "user on host-b": hosts.host_b, "LAN": hosts.client}
    places = [Place(name, None, namespace) for name, namespace in names.items()]
    with ExitStack() as staying:
        for place in places:
            staying.enter_context(place.runs(INSIST, pair.doors()))
        await asyncio.to_thread(pair.protect)
    for place in places:
        await table.attack(place, pair.wires())
        secret = beside(folder / "s")
        assert {"QMP", "control socket", "a file"} <= {wire for wire, _ in secret}
        await table.files(place, secret)
        await flooded(pair, place)
        await pair.carries_on(generation)
    await table.attack(Place("beside supervisor", targets=("127.0.0.1",)), pair.wires())
    print(f"\n{table}")
    assert table.gained == []
    await pair.carries_on(generation)

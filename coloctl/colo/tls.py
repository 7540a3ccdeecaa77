"""Give the QEMUs of an encrypted pair the certificates of their machines, and refuse what is wrong.

Called by `colo.launch` before a QEMU is launched, by `supervisor.acts.protect` and `colo.protect`
before the wires are opened, and by `colo.difference` and `colo.verify` for the programs beside the
disks. Certificates are read on both machines before each launch and checked with `certs.read`.

Invariant: an encrypted pair gets credentials on both nodes, each of which the other one will
accept, or `PreconditionFailed`: no QEMU of it is launched without them, and no wire is opened.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from coloctl.clock import Deadline
from coloctl.colo import clocks, plan, tls_plan
from coloctl.colo.clocks import ClockOffset
from coloctl.colo.ground import Ground
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.machine import tls as qemu
from coloctl.model import sshaddress
from coloctl.model.pair import NODES, NodeName, PairSpec, other
from coloctl.model.tls import CLIENT, PEERS, SERVER, TlsFiles, TlsIds, TlsWire, folder
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.tasks import side_by_side
from coloctl.vm import VM

if TYPE_CHECKING:
    from coloctl.certs.read import CertFacts

#: The answers of a QEMU that runs, seconds.
QEMU_DEADLINE_S = 30.0
#: A chain of certificates has some kilobytes.
FILE_BYTES = 256 * 1024
#: The folder of a machine that is reached by ssh, where the pair file names none: root's.
DISTANT_FOLDER = Path("/etc/coloctl/tls")


@dataclass(frozen=True)
class Proof:
    """The files by which the machine of one node proves itself, as they are there now."""

    node: NodeName
    machine: str  #: for sentences
    name: str  #: that the certificate must be valid for
    ca: bytes
    cert: bytes
    key: bytes
    facts: CertFacts

    @property
    def ids(self) -> TlsIds:
        """The names of the objects made from it; another certificate or authority has others."""
        return TlsIds(sha256(self.ca + self.cert).hexdigest()[:8])


def name_of(spec: PairSpec, node: NodeName) -> str:
    """Return the name for which the certificate of ``node`` must be valid."""
    if named := spec.tls.names.get(node):
        return named
    host = spec.nodes[node].host
    if host.startswith(sshaddress.SCHEME):
        return sshaddress.parse(host).name
    return socket.gethostname().partition(".")[0]


async def proofs(spec: PairSpec, hosts: Mapping[NodeName, Host]) -> dict[NodeName, Proof]:
    """Read what both machines prove themselves by; raises `PreconditionFailed` for what is wrong.

    A certificate has to be valid by this machine's clock and by those of the others.
    """
    from coloctl.certs import read  # cryptography, which a supervisor that takes over needs not

    distant = [node for node in NODES if spec.nodes[node].machine]
    read_both = side_by_side(*(_read(spec, hosts[node], node) for node in NODES))
    offsets = side_by_side(*(clocks.offset(hosts[node]) for node in distant))
    read_now, clocks_there = await side_by_side(read_both, offsets)
    found = dict(zip(NODES, read_now, strict=True))
    now = datetime.now(UTC)
    for node, one in found.items():
        address = spec.nodes[node].address
        read.require_usable(one.facts, one.machine, name=one.name, address=address, now=now)
        for authority in (one, found[other(node)]):
            if not read.issued_by(one.cert, authority.ca, _certificate(one)):
                raise _strange(one, authority)
    for clock in clocks_there:
        _require_valid_there(clock, found.values(), now)
    return found


def _require_valid_there(clock: ClockOffset, found: Iterable[Proof], now: datetime) -> None:
    """Refuse a certificate that ended or has not begun by a clock that differs.

    Raises `PreconditionFailed`.
    """
    there = clock.there(now)
    for one in found if clock.differs else ():
        if not one.facts.since <= there < one.facts.until:
            when = "has ended" if one.facts.until <= there else "is not valid yet"
            raise PreconditionFailed(
                f"{clock.sentence} For it the certificate of {one.machine} {when}.",
                hint=f"{clocks.SET_CLOCK}; `date` shows its time",
            )


async def _read(spec: PairSpec, host: Host, node: NodeName) -> Proof:
    from coloctl.certs import read, store

    distant = bool(spec.nodes[node].machine)
    default = DISTANT_FOLDER if distant else store.machine_dir()
    name = name_of(spec, node)
    machine = name if distant else "this machine"
    where = spec.tls.files(node, default)
    ca, cert, key = await side_by_side(*(_file(spec, host, node, path, machine) for path in where))
    what = f"{where[1]} of {machine}"
    if not read.belongs(key, cert, what):
        raise PreconditionFailed(
            f"{where[2]} of {machine} is not the key of the certificate {where[1]}.",
            hint=f"`coloctl certs renew {name}` makes a new key and certificate",
        )
    return Proof(node, machine, name, ca, cert, key, read.facts(cert, what))


async def _file(spec: PairSpec, host: Host, node: NodeName, path: Path, machine: str) -> bytes:
    user = host.machine.euid if spec.nodes[node].machine else 0
    try:
        content = await host.read_file(path, FILE_BYTES)
    except PreconditionFailed:
        if not user:
            raise
        content = None
    if content is not None:
        return content
    if user:
        raise PreconditionFailed(
            f"Pair {spec.name} is encrypted, and user id {user} cannot read {path} on {machine}.",
            hint="copy the certificate to a folder of that user there, and name that by "
            f"tls.folders.{node}",
        )
    made = f"coloctl certs init {name_of(spec, node)}={spec.nodes[node].address}"
    raise PreconditionFailed(
        f"Pair {spec.name} is encrypted, and there is no {path} on {machine}.",
        hint=f"`{made}` makes one; [tls] folder names another place",
    )


def _certificate(one: Proof) -> str:
    return f"the certificate of {one.machine}"


def _strange(one: Proof, authority: Proof) -> PreconditionFailed:
    if one is authority:
        return PreconditionFailed(
            f"The certificate of {one.machine} was not made by the authority in its own folder.",
            hint=f"`coloctl certs renew {one.name}` makes one that was",
        )
    return PreconditionFailed(
        f"The certificates of {one.name} and {authority.name} come from different authorities.",
        hint="make both with one `coloctl certs init`",
    )


def wires(
    found: Mapping[NodeName, Proof], rundirs: Mapping[NodeName, Path]
) -> dict[NodeName, TlsWire]:
    """Return the TLS of each node's wires; both machines may connect to either."""
    subjects = tuple(dict.fromkeys(found[node].facts.subject for node in NODES))
    return {
        node: TlsWire(one.ids, found[other(node)].name, folder(rundirs[node], one.ids), subjects)
        for node, one in found.items()
    }


async def described(spec: PairSpec, ground: Ground) -> Ground:
    """Return ``ground`` with the TLS that a start would use now; nothing is written.

    Raises as `proofs`.
    """
    if not spec.encrypted():
        return ground
    found = await proofs(spec, ground.hosts)
    return replace(ground, tls=wires(found, {node: ground.rundir(node) for node in NODES}))


async def equipped(spec: PairSpec, ground: Ground, node: NodeName) -> Ground:
    """Return `described`, with the files of ``node`` in its run directory; raises as `proofs`."""
    if not spec.encrypted():
        return ground
    rundirs = {one: ground.rundir(one) for one in NODES}
    return replace(ground, tls=await placed(spec, ground.hosts, node, rundirs))


async def placed(
    spec: PairSpec, hosts: Mapping[NodeName, Host], node: NodeName, rundirs: Mapping[NodeName, Path]
) -> dict[NodeName, TlsWire]:
    """Write the files of ``node`` below its run directory, and return the TLS of both nodes.

    Empty for a plain pair. Raises as `proofs`.
    """
    if not spec.encrypted():
        return {}
    found = await proofs(spec, hosts)
    made = wires(found, rundirs)
    await _put(hosts[node], made[node], found[node])
    return made


async def _put(host: Host, wire: TlsWire, proof: Proof) -> None:
    """Write the files into the folder of that wire, which no other user can reach."""
    files = qemu.contents(proof.ca, proof.cert, proof.key).items()
    await side_by_side(*(host.put(wire.folder / name, content, 0o600) for name, content in files))


async def renew(spec: PairSpec, ground: Ground, primary: VM) -> None:
    """Give a primary the certificate that its machine has now, before a secondary connects to it.

    One whose filters were made with an older certificate loses them: `colo.protect` builds them
    again. Raises as `proofs`.
    """
    if not spec.encrypted():
        return
    ground, deadline = await equipped(spec, ground, primary.node), Deadline(QEMU_DEADLINE_S)
    wire, present = ground.tls[primary.node], await _objects(primary)
    if missing := set(wire.ids.all) - present:
        await run(tls_plan.add(wire, missing), primary.monitor, deadline=deadline)
    old = [one for one in present - set(wire.ids.all) if one.startswith((SERVER, CLIENT, PEERS))]
    if old:
        await run(plan.clear_primary(spec), primary.monitor, deadline=deadline)
        await run(tls_plan.remove(sorted(old)), primary.monitor, deadline=deadline)


async def held(spec: PairSpec, *vms: VM) -> dict[NodeName, TlsWire]:
    """Return the TLS that these QEMUs have, asked of them; empty for a plain pair.

    Raises `PreconditionFailed` for a QEMU of an encrypted pair that has none.
    """
    found: dict[NodeName, TlsWire] = {}
    asked = vms if spec.encrypted() else ()
    for vm, objects in zip(asked, await side_by_side(*map(_objects, asked)), strict=True):
        serials = [one.removeprefix(CLIENT) for one in objects if one.startswith(CLIENT)]
        if not serials:
            raise PreconditionFailed(
                f"Pair {spec.name} is encrypted, and the QEMU of node {vm.node} has no "
                "certificate.",
                hint="`coloctl stop`, then `coloctl start` gives it one",
            )
        ids = TlsIds(max(serials))
        found[vm.node] = TlsWire(ids, name_of(spec, other(vm.node)), folder(vm.rundir, ids))
    return found


async def _objects(vm: VM) -> set[str]:
    return {str(entry["name"]) for entry in await vm.execute(qmp.qom_list("/objects"))}


async def files(spec: PairSpec, primary: VM, secondary: VM) -> dict[NodeName, TlsFiles]:
    """Return the files by which a program beside either QEMU connects to the secondary's disks.

    A renewed certificate of the machine does not count before its QEMU has it. Raises as `held`.
    """
    name = name_of(spec, secondary.node)
    wires = await held(spec, primary, secondary)
    return {node: qemu.files(wire.folder, name) for node, wire in wires.items()}

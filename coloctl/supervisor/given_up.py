"""Remember the QEMUs that an operator has given up with their machine, until they are proven gone.

Called by `supervisor.leftovers`, which adds what it cannot reach, by `cli.verbs.start`,
`cli.verbs.run` and `supervisor.acts.start` before a pair starts, and by `cli.verbs.fence` for an
operator's statement. `host.base` ends such a QEMU, and `colo.generation` marks its disks.

Invariant: a QEMU is in the list, on disk, before the folder of its pair is removed. It leaves the
list with a proof of its end, or by the statement that its machine is gone, which is refused where
that machine answers. Until then no guest of that pair starts on its machine. The list lies beside
the registry, so a boot of this machine does not remove it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from coloctl import paths
from coloctl.colo import generation, guard, taps
from coloctl.colo.generation import Worth
from coloctl.errors import ColoctlError, HostOutOfReach, PreconditionFailed
from coloctl.ha.fencing import KILL_DEADLINE_S
from coloctl.host import durable, open_host
from coloctl.host.base import Host, Identity
from coloctl.journal import Journal
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model import sshaddress
from coloctl.model.event import LEADER, Kind, Record
from coloctl.model.pair import NODES, NodeName, PairSpec, Role, other
from coloctl.model.wires import Wires
from coloctl.reading import read_json

log = logging.getLogger(__name__)

#: A QEMU takes some hundred bytes, and each loss of a machine adds one.
BYTES_MAX = 1 << 20

#: How long the machine of a QEMU that is to be forgotten has to answer, seconds.
REACH_WAIT_S = 30.0

Hosts = Mapping[NodeName, Host]


@dataclass(frozen=True)
class GivenUp:
    """A QEMU that may still run on a machine that an operator called gone for good."""

    node: str
    role: str
    host: str  #: as the pair file named it
    identity: Identity
    leader: Identity | None
    generation: int  #: of the pair, in which its guest went on without these disks

    def sentence(self) -> str:
        """Return what it is, where it may run, and what ends it."""
        on = f" on {named}" if (named := _machine(self.host)) else ""
        return (
            f"The {self.role} on node {self.node} (process {self.identity.pid}{on}) was "
            "given up with its machine and may still run; a start of the pair on that machine ends "
            "it first."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entry as it is written."""
        leader = {} if self.leader is None else {LEADER: self.leader.to_json()}
        return {
            "node": self.node,
            "role": self.role,
            "host": self.host,
            "generation": self.generation,
            **self.identity.to_json(),
            **leader,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; raises `KeyError`, `TypeError` or `ValueError`."""
        leader = Identity.from_json(found[LEADER]) if LEADER in found else None
        who = Identity.from_json(found)
        number = int(found["generation"])
        return cls(str(found["node"]), str(found["role"]), str(found["host"]), who, leader, number)


def _machine(host: str) -> str:
    """Return the name of the machine in the host of a pair file; "" for one that names none."""
    try:
        return sshaddress.parse(host).name
    except ValueError:
        return ""


def file_of(pair: str) -> Path:
    """Return the path of the list of ``pair`` on this machine."""
    return paths.given_up_dir() / f"{pair}.json"


def of(pair: str) -> tuple[GivenUp, ...]:
    """Return the QEMUs of ``pair`` that were given up; raises `PreconditionFailed`."""
    path = file_of(pair)
    content = durable.read(path, BYTES_MAX)
    if content is None:
        return ()
    try:
        listed: Any = read_json(content)
        return tuple(GivenUp.from_json(one) for one in listed)
    except (KeyError, TypeError, ValueError) as error:
        raise PreconditionFailed(
            f"{path} is damaged: {error}.",
            hint="it names QEMUs that may still run on machines that were given up: look there, "
            "then remove it",
        ) from None


def sentence(pair: str) -> str:
    """Return a sentence on each QEMU of ``pair`` that was given up; "" where there is none.

    Where the list cannot be read, that is the sentence.
    """
    try:
        return " ".join(one.sentence() for one in of(pair))
    except PreconditionFailed as error:
        return error.message


def known() -> dict[str, str]:
    """Return the sentences on what was given up, by the name of the pair.

    Raises `PreconditionFailed` where the folder of the lists is open to others.
    """
    names = sorted(one.stem for one in paths.given_up_dir().glob("*.json"))
    return {name: said for name in names if (said := sentence(name))}


def give_up(pair: str, journal: Path, found: Collection[GivenUp]) -> None:
    """Add ``found`` to the list of ``pair``, durably, and record that in its journal.

    Raises `PreconditionFailed`.
    """
    if not found:
        return
    _write(pair, [*of(pair), *found])
    with Journal(journal) as records:
        for one in found:
            data = {"given-up": one.role, **one.identity.to_json()}
            record = Record(Kind.OUTCOME, "stop", "given-up", one.node, one.generation, data=data)
            records.append(record)


def _write(pair: str, listed: Iterable[GivenUp]) -> None:
    path, left = file_of(pair), [one.to_json() for one in listed]
    if left:
        paths.make_private(path.parent)
        durable.replace(path, json.dumps(left, indent=1).encode() + b"\n")
    else:
        path.unlink(missing_ok=True)


async def end(spec: PairSpec, hosts: Hosts) -> list[str]:
    """End what was given up on the machines of ``hosts``, and mark its disks as diverged.

    Not those of a primary whose guest has run nowhere else since: they hold all that it wrote.
    Return a sentence on each. Raises `FencingFailed` where one does not die; it stays in the list
    then.
    """
    told = []
    for one in of(spec.name):
        own_first = sorted(NODES, key=lambda node: node != one.node)
        node = next((node for node in own_first if _is_of(one, hosts[node])), None)
        if node is None:
            continue
        host = hosts[node]
        rundir = host.machine.pair_dir(spec.name) / one.node
        proof = await host.kill(
            one.identity,
            node=node,
            deadline_s=KILL_DEADLINE_S,
            leader=one.leader,
            sockets=tuple(monitor_sockets(rundir).values()),
        )
        await taps.lower_free(spec, host, node)
        newest = await _newest(spec, hosts, node, one)
        warning = "" if newest else await generation.leave(spec, hosts, node, one.generation)
        await host.sweep(rundir)
        await guard.lift_at(Wires(spec, rundir.parent), host)
        _write(spec.name, [kept for kept in of(spec.name) if kept != one])
        worth = "are still the newest" if newest else "count as diverged"
        told.append(
            f"The {one.role} that was given up on node {node} (process {proof.pid} on "
            f"{host.machine.name}) is gone ({proof.how}). {warning or f'Its disks {worth}.'}"
        )
        log.info("%s", told[-1])
    return told


def on(pair: str, node: str) -> tuple[GivenUp, ...]:
    """Return what was given up on ``node``; raises `PreconditionFailed` where that is nothing."""
    found = tuple(one for one in of(pair) if one.node == node)
    if not found:
        raise PreconditionFailed(
            f"Nothing of {pair} was given up on node {node}.",
            hint="`coloctl list` and `coloctl status` name what was given up",
        )
    return found


async def forget(pair: str, node: str) -> None:
    """Take what was given up on ``node`` from the list; an operator states that it is gone.

    Raises `PreconditionFailed` where nothing was given up there, and where the machine answers on
    which it may still run.
    """
    found = on(pair, node)
    for one in found:
        await _require_gone(one, pair)
    _write(pair, [kept for kept in of(pair) if kept not in found])
    for one in found:
        log.info("Forgotten by an operator's statement: %s", one.sentence())


async def _require_gone(one: GivenUp, pair: str) -> None:
    """Refuse where the machine of ``one`` answers; a machine out of reach proves nothing."""
    here = False
    try:
        host = open_host(one.host)
    except PreconditionFailed:  # a network namespace that is gone: it was of this machine
        host, here = open_host("local"), True
    try:
        with contextlib.suppress(HostOutOfReach):
            await host.ready(REACH_WAIT_S)
            if here or _is_of(one, host):
                raise PreconditionFailed(
                    f"{host.machine.name} answers, and is the machine on which process "
                    f"{one.identity.pid} of {pair} was given up.",
                    hint=f"start {pair} on it: that ends the process, with a proof",
                )
    finally:
        await host.aclose()


async def _newest(spec: PairSpec, hosts: Hosts, node: NodeName, one: GivenUp) -> bool:
    """Return whether the disks of ``node`` are known to be the newest although it was given up.

    They are where it was the primary and no guest has run on the other node's disks: a secondary's
    lack what the primary acknowledged since the last checkpoint. In doubt they are not.
    """
    if one.role != Role.PRIMARY or one.node != node:
        return False
    try:
        there = (await generation.read(spec, hosts))[other(node)]
    except ColoctlError:
        return False
    ran = there.state in (Worth.IN_SYNC, Worth.OVERLAY_PENDING)
    return there.written and not there.doubt and not ran


def _is_of(one: GivenUp, host: Host) -> bool:
    """Return whether the QEMU ran on the machine of ``host``.

    Where a machine has no machine-id(5), its name in the pair file decides.
    """
    if one.identity.machine:
        return one.identity.machine == host.machine.machine_id
    return one.host == host.name

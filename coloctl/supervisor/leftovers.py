"""Find what a pair left when its supervisor is gone, and end it on request.

Called by `cli.reach` and other verbs, and by `control.daemon.serve`; asks the host of each node
(`host.base`) which of its processes live, and ends them there.

Invariant: a process is signalled only if the folder's journal names it (pid, start time, machine,
boot, user, program), or if it holds the listening socket of one of this folder's monitors. A folder
is discarded only when all of these are proven gone; a machine out of reach proves nothing. The
socket finds a QEMU whose supervisor was killed before it could write. A command line proves
nothing: any local user can run a process with any words on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from coloctl import paths, procfs
from coloctl.colo import guard, taps
from coloctl.errors import ColoctlError, FencingFailed, HostOutOfReach, PreconditionFailed
from coloctl.ha.fencing import KILL_DEADLINE_S
from coloctl.host import ownership
from coloctl.host.base import DeathProof, Host, Identity
from coloctl.journal import replay
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model import event
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.model.wires import Wires
from coloctl.supervisor import given_up
from coloctl.supervisor.given_up import GivenUp
from coloctl.supervisor.leftover import JOURNAL, Leftover, ended, ending, launched
from coloctl.supervisor.pair_hosts import (
    Hosts,
    opened,
    require_reach,
    require_same_machine,
    rundir,
    started_pair,
    sweep_elsewhere,
)

log = logging.getLogger(__name__)


def find(folder: Path, *, dial: bool = True) -> tuple[Leftover, ...]:
    """List the QEMUs as `living` does, for callers outside of an event loop.

    Without ``dial`` no other machine is asked. Raises as `living`.
    """

    async def found() -> tuple[Leftover, ...]:
        async with opened(folder, dial=dial) as hosts:
            return await living(folder, hosts)

    return asyncio.run(found())


def find_or_clear(folder: Path) -> tuple[Leftover, ...]:
    """List the QEMUs as `living` does; where there are none, close the taps of the pair.

    For callers outside of an event loop; raises as `living`.
    """

    async def found() -> tuple[Leftover, ...]:
        async with opened(folder) as hosts:
            alive = await living(folder, hosts)
            if not alive:
                await close_taps(folder, hosts)
            return alive

    return asyncio.run(found())


def find_strays(folder: Path) -> tuple[Leftover, ...]:
    """List the QEMUs of this machine as `running_in` does, where the journal cannot be read."""

    async def found() -> tuple[Leftover, ...]:
        async with opened(folder, dial=False) as hosts:
            return await running_in(folder, hosts)

    return asyncio.run(found())


async def living(folder: Path, hosts: Hosts) -> tuple[Leftover, ...]:
    """List the QEMUs of the pair in ``folder`` that still exist, or may: doubt counts as life.

    One whose end the journal proves is not listed; a wrapper that outlived it may be. Of a host out
    of reach, or one that is another machine now, the latest of the node is listed, with the doubt:
    each earlier one was proven gone before that was launched. Raises `PreconditionFailed` when the
    journal is damaged.
    """
    records = replay(folder / JOURNAL).records
    past, gone = launched(records), ended(records)
    latest = {one.node: one for one in past if one.key() not in gone}
    named: list[Leftover] = []
    for one in past:
        over = one.key() in gone
        if over and one.leader in (None, one.identity):
            continue
        sought = replace(one, identity=one.leader, leader=None) if over and one.leader else one
        found = await _looked_for(sought, folder, hosts)
        if found is not None and (not found.doubt or one is latest.get(one.node)):
            named.append(found)
    # One in doubt may be a process of another machine: it hides none of this one.
    known = {who for one in named if not one.doubt for who in (one.identity, one.leader)}
    strays = [one for one in await running_in(folder, hosts) if one.identity not in known]
    return tuple(named) + tuple([await _with_sockets(one, folder, hosts) for one in strays])


async def _looked_for(one: Leftover, folder: Path, hosts: Hosts) -> Leftover | None:
    """Return ``one`` with what its host answers; None: it is gone."""
    try:
        if await exists(one.identity, one.node, _host(one, hosts), leader=one.leader):
            return await _with_sockets(one, folder, hosts)
    except HostOutOfReach as error:
        return replace(one, doubt=error.message)
    return None


async def _with_sockets(one: Leftover, folder: Path, hosts: Hosts) -> Leftover:
    """Return ``one`` with whether its monitors still have their place."""
    try:
        host = _host(one, hosts)
        sockets = monitor_sockets(rundir(folder, host, one.node)).values()
        missing = [await host.usable(path, os.F_OK) for path in sockets]
    except HostOutOfReach as error:
        return replace(one, doubt=error.message)
    return replace(one, cut_off=any(missing))


def _host(one: Leftover, hosts: Hosts) -> Host:
    """Return the host of ``one``; raises `HostOutOfReach` for one that was not or cannot be asked.

    A host that was not dialled would be dialled by the first question.
    """
    host = next(host for node, host in hosts.items() if node == one.node)
    require_reach(host)
    return host


def without_folder() -> list[str]:
    """Name the pairs of this state folder whose own folder was removed while their QEMUs run."""
    home = paths.state_dir()
    bound = {path.relative_to(home).parts for path in procfs.listening_below(home)}
    names = {parts[0] for parts in bound if len(parts) == 3 and parts[1] in NODES}
    return sorted(name for name in names if not (home / name).exists() and find(home / name))


async def running_in(folder: Path, hosts: Hosts) -> tuple[Leftover, ...]:
    """Find the processes that hold a monitor's socket of one of this folder's nodes.

    One that was promoted still counts as a secondary here: its command line is that of one. A host
    out of reach has none.
    """
    held = await asyncio.gather(*(_holding(folder, hosts[node], node) for node in NODES))
    found = {one.identity: one for some in held for one in some}
    return tuple(sorted(found.values(), key=lambda one: (one.node, one.identity.pid)))


async def _holding(folder: Path, host: Host, node: NodeName) -> list[Leftover]:
    """Find the processes that hold a monitor's socket of ``node``; none on a host out of reach."""
    try:
        require_reach(host)
        holding = await host.holders(tuple(monitor_sockets(rundir(folder, host, node)).values()))
    except HostOutOfReach:
        return []
    return [
        Leftover(node, Role.SECONDARY if one.incoming else Role.PRIMARY, one.identity)
        for some in holding.values()
        for one in some
    ]


async def exists(
    identity: Identity, node: str, host: Host, *, leader: Identity | None = None
) -> bool:
    """Return whether that process still exists on ``host``, or the ``leader`` that started it.

    Doubt counts as life. Raises `HostOutOfReach`, also where ``host`` is another machine now.
    """
    try:
        process = await host.adopt(identity, node=node, leader=leader)
    except HostOutOfReach:
        raise
    except PreconditionFailed:
        require_same_machine(identity, host)
        return True
    if process is None:
        return False
    process.close()
    return True


async def end(
    folder: Path, hosts: Hosts, without: Collection[str] = ()
) -> list[tuple[Leftover, DeathProof]]:
    """End every QEMU of the pair in ``folder``, with proof, and set its taps down.

    The secondaries end first, so that none takes over. Those on a machine out of reach are left,
    and named by the error. Those of the nodes ``without`` are given up then (`given_up`): an
    operator has called their machines gone for good. Raises `FencingFailed` without a proof, and
    `PreconditionFailed` when the journal is damaged.
    """
    found = sorted(await living(folder, hosts), key=lambda one: one.role == "primary")
    proofs = [(one, await _kill(folder, one, hosts)) for one in found if not one.doubt]
    await close_taps(folder, hosts)
    doubted = [one for one in found if one.doubt]
    for one in doubted:
        if one.node not in without:
            raise FencingFailed(
                one.node,
                f"It is not known whether {one} still runs: {one.doubt}",
                hint=ending(folder, doubted),
            )
    given_up.give_up(folder.name, folder / JOURNAL, tuple(_given_up(folder, doubted)))
    await sweep_elsewhere(folder, hosts)
    return proofs


def _given_up(folder: Path, found: Iterable[Leftover]) -> Iterator[GivenUp]:
    """Yield ``found`` as entries of the list of what was given up."""
    pair, last = started_pair(folder), event.last_generation(replay(folder / JOURNAL).records)
    number = (last.generation or 0) if last else 0
    hosts = {node: pair.nodes[node].host for node in NODES} if pair else {}
    for one in found:
        host = next((name for node, name in hosts.items() if node == one.node), "")
        yield GivenUp(one.node, one.role, host, one.identity, one.leader, number)


async def _kill(folder: Path, one: Leftover, hosts: Hosts) -> DeathProof:
    host = _host(one, hosts)
    return await host.kill(
        one.identity,
        node=one.node,
        deadline_s=KILL_DEADLINE_S,
        leader=one.leader,
        sockets=tuple(monitor_sockets(rundir(folder, host, one.node)).values()),
    )


async def close_taps(folder: Path, hosts: Hosts) -> None:
    """Set the taps of the pair in ``folder`` down, remove its own, and lift its packet rules.

    As far as its pair file can be read and its hosts can be reached. A tap that a process holds is
    a living guest's, under another state folder, and stays up.
    """
    if (pair := started_pair(folder)) is None:
        return
    for node in NODES:
        host = hosts[node]
        if host.name == pair.nodes[node].host:  # else its namespace is gone, with its taps
            with contextlib.suppress(ColoctlError):
                await taps.remove_free(pair, host, node)
                await guard.lift_at(Wires(pair, folder), host)


def discard(folder: Path) -> None:
    """Remove ``folder``. Its name is free at once, before its content is deleted.

    Files that were lent to its QEMUs get their former owners back.
    On a filesystem that is read-only it stays, and the next start finds nothing living in it. The
    caller serves the pair's control socket, or holds the lock of the state folder.
    """
    ownership.take_all_back(folder)
    grave = paths.state_dir() / f".{folder.name}.{os.getpid()}"
    try:
        folder.rename(grave)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error.strerror)
        grave = folder
    shutil.rmtree(grave, ignore_errors=True)

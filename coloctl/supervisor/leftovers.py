"""Find what a pair left when its supervisor is gone, and end it on request.

Called by `cli.reach` and other verbs, and by `control.daemon.serve`; finds sockets' owners by
`host.holders`, kills by `host.process`.

Invariant: a process is signalled only if the folder's journal names it (pid, start time, boot,
user, program), or if it holds the listening socket of one of this folder's monitors. A folder is
discarded only when all of these are proven gone. The socket finds a QEMU whose supervisor was
killed before it could write. A command line proves nothing: any local user can run a process with
any words on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coloctl import paths, procfs
from coloctl.colo import guard, taps
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.ha.fencing import KILL_DEADLINE_S
from coloctl.host import open_host
from coloctl.host.base import DeathProof, Identity
from coloctl.host.holders import holders
from coloctl.host.process import adopt
from coloctl.host.program import kill_program
from coloctl.host.records import Stray
from coloctl.journal import replay
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model import event
from coloctl.model.event import Record
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.model.wires import Wires
from coloctl.supervisor.started import SOURCE, remembered

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Leftover:
    """A QEMU that a supervisor launched, as its journal has it."""

    node: str
    role: str
    identity: Identity
    leader: Identity | None = None  #: the process that was launched, where that is another one

    def __str__(self) -> str:
        return f"the {self.role} on node {self.node} (process {self.identity.pid})"


def launched(records: Iterable[Record]) -> tuple[Leftover, ...]:
    """List every QEMU that was launched, oldest first, with the role that it had last."""
    found: dict[Identity, Leftover] = {}
    for record in records:
        if event.LAUNCHED in record.data:
            who, data = Identity.from_json(record.data), record.data
            first = Identity.from_json(data[event.LEADER]) if event.LEADER in data else None
            found[who] = Leftover(record.node, str(data[event.LAUNCHED]), who, first)
    return tuple(found.values())


def living(folder: Path) -> tuple[Leftover, ...]:
    """List the QEMUs of the pair in ``folder`` that still exist, or may: doubt counts as life.

    Raises `PreconditionFailed` when the journal is damaged.
    """
    past = launched(replay(folder / JOURNAL).records)
    named = tuple(one for one in past if _lives(one))
    known = {identity for one in named for identity in (one.identity, one.leader)}
    return named + tuple(one for one in running_in(folder) if one.identity not in known)


def without_folder() -> list[str]:
    """Name the pairs of this state folder whose own folder was removed while their QEMUs run."""
    home = paths.state_dir()
    bound = {path.relative_to(home).parts for path in procfs.listening_below(home)}
    names = {parts[0] for parts in bound if len(parts) == 3 and parts[1] in NODES}
    return sorted(name for name in names if not (home / name).exists() and living(home / name))


def told(folder: Path, found: Sequence[Leftover]) -> str:
    """Return a sentence on what of the pair in ``folder`` lives without a supervisor."""
    names = " and ".join(map(str, found))
    runs = f"{names} still {'runs' if len(found) == 1 else 'run'}"
    serves = any(one.role == Role.PRIMARY for one in found)
    guest = ": its guest may be serving clients, and nothing watches it" if serves else ""
    return f"The supervisor of pair {folder.name} is gone, but {runs}{guest}."


def advice(folder: Path, found: Sequence[Leftover]) -> str:
    """Return what can be typed about ``found``, QEMUs of the pair in ``folder``."""
    end = f"`coloctl stop {folder.name} --force` ends it"
    if reachable(folder, found):
        return f"`coloctl start {source_of(folder)} --adopt` takes over what is left, {end}"
    return (
        "its monitors' sockets were removed, so it cannot be taken over: shut the guest down "
        f"from inside; {end}"
    )


def reachable(folder: Path, found: Iterable[Leftover]) -> bool:
    """Return whether the monitors of all of ``found`` still have their place in ``folder``."""
    return all(
        path.exists() for one in found for path in monitor_sockets(folder / one.node).values()
    )


def source_of(folder: Path) -> str:
    """Return the pair file that the pair in ``folder`` was started from.

    "SPEC" where none is known.

    The link beside the journal names it, or else the journal.
    """
    with contextlib.suppress(OSError):
        return str((folder / SOURCE).readlink())
    with contextlib.suppress(ColoctlError):
        settings = event.last_settings(replay(folder / JOURNAL).records)
        return str(settings.get(event.SOURCE, "SPEC"))
    return "SPEC"


def running_in(folder: Path) -> Iterator[Leftover]:
    """Find the processes that hold a monitor's socket of one of this folder's nodes.

    One that was promoted still counts as a secondary here: its command line is that of one.
    """
    sockets = {path: node for node in NODES for path in monitor_sockets(folder / node).values()}
    found: dict[Stray, NodeName] = {}
    for path, holding in holders(sockets).items():
        found |= dict.fromkeys(holding, sockets[path])
    for stray, node in sorted(found.items(), key=lambda item: (item[1], item[0].identity.pid)):
        role = Role.SECONDARY if stray.incoming else Role.PRIMARY
        yield Leftover(node, role, stray.identity)


def _lives(leftover: Leftover) -> bool:
    """Return whether the QEMU or the wrapper that started it still exists, or may."""
    return exists(leftover.identity, leftover.node) or (
        leftover.leader is not None and exists(leftover.leader, leftover.node)
    )


def exists(identity: Identity, node: str) -> bool:
    """Return whether that process still exists, or may: doubt counts as life."""
    try:
        process = adopt(identity, node=node)
    except PreconditionFailed:
        return True
    if process is None:
        return False
    process.close()
    return True


async def end(folder: Path) -> list[tuple[Leftover, DeathProof]]:
    """End every QEMU of the pair in ``folder``, with proof, and set its taps down.

    The secondaries end first, so that none takes over. Raises `FencingFailed` without a proof, and
    `PreconditionFailed` when the journal is damaged.
    """
    found = sorted(living(folder), key=lambda one: one.role == "primary")
    proofs = [(one, await _kill(folder, one)) for one in found]
    await close_taps(folder)
    return proofs


async def _kill(folder: Path, one: Leftover) -> DeathProof:
    return await kill_program(
        one.identity,
        node=one.node,
        deadline_s=KILL_DEADLINE_S,
        leader=one.leader,
        sockets=monitor_sockets(folder / one.node).values(),
    )


async def close_taps(folder: Path) -> None:
    """Set the taps of the pair in ``folder`` down, and lift its packet rules.

    As far as its pair file can be read. A tap that a process holds is a living guest's, under
    another state folder, and stays up.
    """
    with contextlib.suppress(ColoctlError):
        if (started := remembered(folder)) is None:
            return
        pair = started.pair
        for node in NODES:
            host = open_host(pair.nodes[node].host)
            try:
                await taps.lower_free(pair, host, node)
                await guard.lift_at(Wires(pair, folder), host)
            finally:
                await host.aclose()


def discard(folder: Path) -> None:
    """Remove ``folder``. Its name is free at once, before its content is deleted.

    On a filesystem that is read-only it stays, and the next start finds nothing living in it. The
    caller serves the pair's control socket, or holds the lock of the state folder.
    """
    grave = paths.state_dir() / f".{folder.name}.{os.getpid()}"
    try:
        folder.rename(grave)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error.strerror)
        grave = folder
    shutil.rmtree(grave, ignore_errors=True)

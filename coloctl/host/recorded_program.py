"""Hold or kill the program that a record names, with every process that belongs to it.

Called by `host.local` for the QEMUs that an earlier supervisor, or an earlier session of an agent,
started; adopts their processes by `host.adopting`. Invariant: None, in place of a program, is a
proof that nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from coloctl import procfs
from coloctl.errors import FencingFailed, PreconditionFailed
from coloctl.host import ownership
from coloctl.host.adopting import adopt
from coloctl.host.gone import GoneProcess
from coloctl.host.identity import Identity
from coloctl.host.process import LocalProcess
from coloctl.host.program import Program, looked
from coloctl.host.records import DeathProof


async def adopt_program(
    identity: Identity,
    *,
    node: str = "",
    leader: Identity | None = None,
    sockets: Collection[Path] = (),
) -> Program | None:
    """Hold the program whose QEMU is ``identity``, or return None: no process of it is left.

    ``leader`` is the process that was launched, where that is another one; ``sockets`` are the
    paths of the sockets that were handed over. None is a proof; a case of doubt raises
    `PreconditionFailed`.
    """
    ownership.recognize(sockets)
    held = adopt(identity, node=node)
    main: LocalProcess | GoneProcess = held or GoneProcess(identity, node=node)
    first = main
    if leader is not None and leader != identity:
        first = adopt(leader, node=node) or GoneProcess(leader, node=node)
    inodes = await looked(procfs.listeners, tuple(sockets))
    program = Program(first, inodes, main)
    if held is None and not first.alive() and not await program.lives():
        return None
    return program


def known_program(
    identity: Identity, *, node: str, leader: Identity | None, sockets: Collection[Path]
) -> Program:
    """Hold the program whose QEMU is ``identity``, gone or not; raises as `adopt_program`."""
    main = adopt(identity, node=node) or GoneProcess(identity, node=node)
    first: LocalProcess | GoneProcess = main
    if leader is not None and leader != identity:
        first = adopt(leader, node=node) or GoneProcess(leader, node=node)
    return Program(first, procfs.listeners(tuple(sockets)), main)


async def kill_program(
    identity: Identity,
    *,
    node: str,
    deadline_s: float,
    leader: Identity | None = None,
    sockets: Collection[Path] = (),
) -> DeathProof:
    """Kill every process of the program whose QEMU is ``identity``; raises `FencingFailed`."""
    try:
        program = await adopt_program(identity, node=node, leader=leader, sockets=sockets)
    except PreconditionFailed as error:
        raise FencingFailed(node, error.message, hint=error.hint) from None
    if program is None:
        return await GoneProcess(identity, node=node).kill(deadline_s)
    try:
        return await program.kill(deadline_s)
    finally:
        program.close()

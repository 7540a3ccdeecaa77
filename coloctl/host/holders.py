"""Find the processes that hold a listening socket: the one proof of a QEMU that no record names.

Called by `host.local` as `Host.holders`, by `supervisor.leftovers` and `host.agent.place`, for
QEMUs whose supervisor died before it recorded them, and where a record is lost; reads `procfs`. A
monitor's socket is made by coloctl in a folder that only its user can enter, and inherited by the
QEMU that is started for it. So its holder is that QEMU, or a process that it or its wrapper
started. (SO_PEERCRED names the process that called listen(2), which was coloctl, not QEMU.)
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from coloctl import procfs
from coloctl.host import ownership
from coloctl.host.process import command_line, identity_of
from coloctl.host.records import Stray


def holders(sockets: Collection[Path]) -> dict[Path, tuple[Stray, ...]]:
    """Find the holders of each of ``sockets``, in order of their pid.

    They are processes of this user, or of the one as which the QEMU in that folder was started.

    Of the processes of one session only its leader is returned, where it lives. coloctl starts each
    QEMU as the leader of a session, and what that started in turn ends with it. The path may be
    gone from its folder; the kernel remembers it.
    """
    ownership.recognize(sockets)
    inodes = procfs.listening_at(sockets)
    return {path: found for path, some in inodes.items() if (found := _leaders(some))}


def _leaders(inodes: Collection[int]) -> tuple[Stray, ...]:
    found: dict[int, Stray] = {}
    for pid in sorted(procfs.holding({procfs.socket_name(inode) for inode in inodes})):
        stat = procfs.read_stat(pid)
        if stat is None or not procfs.ours(pid):
            continue
        leader = stat.session if _leads(stat.session) else pid
        if (identity := identity_of(leader)) is not None:
            found.setdefault(leader, Stray(identity, "-incoming" in command_line(leader)))
    return tuple(found.values())


def _leads(pid: int) -> bool:
    """Return whether ``pid`` still leads a session of this user that is not this process's own."""
    stat = procfs.read_stat(pid)
    mine = os.getsid(0)
    return pid not in (0, mine) and stat is not None and stat.state not in "ZX" and procfs.ours(pid)

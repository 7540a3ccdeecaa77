"""Find the processes that belong to a launched program, by what the kernel shows of them.

Called by `host.program`; reads `procfs`. Two facts show what belongs to it: the session that the
launch began, and the listening sockets that were handed over at the launch, which only its own
processes can have.

Invariant: a process that cannot be proven to belong is never returned. The number of a session
proves nothing once the kernel may have given it to others.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from coloctl import procfs
from coloctl.errors import PreconditionFailed
from coloctl.host.adopting import adopt
from coloctl.host.identity import Identity
from coloctl.host.process import LocalProcess

#: How long the number of a session counts as its own after its last sign of life, in clock ticks:
#: the kernel gives a number out again only after all the others.
_OWN_TICKS = 10


class ProcessTree:
    """The living processes of one program, looked for again at each call."""

    def __init__(self, leader: Identity, sockets: Mapping[Path, int], node: str) -> None:
        """Begin with ``leader``, launched as the leader of a session; ``sockets`` maps paths to
        inodes.
        """
        self.sockets = dict(sockets)
        self.node = node
        #: Those of the last look that only a socket shows: perhaps a child of this very
        #: process, which holds all its descriptors for an instant, between fork and exec.
        self.unsure: set[Identity] = set()
        #: The sessions of the program, and the tick until which their numbers are surely its own.
        self._sessions = {leader.pid: leader.start_time + _OWN_TICKS}
        #: Their leaders, as far as they were seen; one that began at another time is a stranger.
        self._leaders = {leader.pid: leader.start_time}

    def look(self) -> list[LocalProcess]:
        """Find and hold every living process of the program; blocks for some milliseconds."""
        stats = procfs.living()
        names = {procfs.socket_name(inode) for inode in self.sockets.values()}
        holders = procfs.holding(names) if names else set()
        found: list[LocalProcess] = []
        unsure, own = set(), os.getsid(0)
        for pid, stat in stats.items():
            in_session = stat.start_time <= self._sessions.get(stat.session, -1)
            first = stats.get(stat.session)
            if first and first.start_time != self._leaders.get(stat.session, first.start_time):
                in_session = False
            if stat.session == own or not (in_session or pid in holders):
                continue
            one = _held(Identity(pid, stat.start_time), self.node)
            if one is not None:
                found.append(one)
                if not in_session:
                    unsure.add(one.identity)
        self.unsure = unsure
        for one in found:
            if one.identity not in unsure and one.alive():
                self._lives(stats[one.identity.pid].session)
        return found

    def note_life(self, one: Identity) -> None:
        """Count the session of ``one`` as the program's; it is alive, and belongs to it."""
        stat = procfs.read_stat(one.pid)
        if stat is not None and stat.start_time == one.start_time:
            self._lives(stat.session)

    def _lives(self, session: int) -> None:
        if session == os.getsid(0):
            return
        self._sessions[session] = procfs.ticks() + _OWN_TICKS
        first = procfs.read_stat(session)
        if first is not None:
            self._leaders.setdefault(session, first.start_time)

    def listens(self) -> bool:
        """Return whether a process has one of the sockets: it takes connections then.

        Also True where a path is gone: then only `silent` can decide.
        """
        return any(not _refuses(path) for path in self.sockets)

    def silent(self) -> bool:
        """Return whether no process has one of the sockets, seen or unseen; blocks as `look`."""
        return not self.listens() or not procfs.listed(self.sockets.values())


def holder(files: Collection[Path], tree: Collection[Identity], otherwise: Identity) -> Identity:
    """Return the one of ``tree`` that has ``files`` open, else ``otherwise``; blocks as `look`."""
    if len(tree) == 1:
        return otherwise
    pids = procfs.holding_file(files)
    found = [one for one in tree if one.pid in pids]
    return found[0] if len(found) == 1 else otherwise


def _held(identity: Identity, node: str) -> LocalProcess | None:
    try:
        return adopt(identity, node=node)
    except PreconditionFailed:  # /proc hides it: it is no descendant of ours that we could end
        return None


def _refuses(path: Path) -> bool:
    """Return whether the kernel refuses a connection to ``path``: no process has that socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        return sock.connect_ex(str(path.absolute())) == errno.ECONNREFUSED

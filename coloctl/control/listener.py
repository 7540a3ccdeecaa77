"""Bind a control socket, for the supervisor that will serve it.

Called by `control.daemon.spawn` before it starts a supervisor, by `cli.verbs.run` as one, and by
`control.daemon.home` where a socket was removed; locks with `flocks`.

Invariant: of several starters at once exactly one gets the socket of a pair.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from coloctl import flocks, paths
from coloctl.errors import PairBusy, PreconditionFailed

_BACKLOG = 16
#: A lock that is held for longer is held by what hangs, seconds; and between two tries.
LOCK_WAIT_S = 20.0
#: The file that is locked in place of a folder that others may read.
LOCK_NAME = ".lock"
_OTHERS = stat.S_IRGRP | stat.S_IROTH


def listen(path: Path) -> socket.socket:
    """Bind a unix socket at ``path`` with mode 0600; one that no process serves is replaced.

    Raises `PairBusy` when a supervisor listens there, `PreconditionFailed` when ``path`` is too
    long or its folder does not allow it. Of several starters at once exactly one succeeds.
    """
    paths.check_socket_path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the bound path the mode of its socket
        with folder_locked(path.parent):
            if served(path):
                raise PairBusy(
                    f"A supervisor already serves {path}.",
                    hint=f"coloctl status {path.parent.name} shows it",
                )
            path.unlink(missing_ok=True)
            listener.bind(os.fspath(path))
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise PreconditionFailed(f"{path} cannot be made: {error.strerror}.") from None
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Keep other starters waiting; it takes no longer than a bind.

    A user who can open a locked file can hold the lock for ever. So a folder that others may
    read is not locked itself: a file in it is, which is this user's alone.

    Raises `PreconditionFailed` after `LOCK_WAIT_S`.
    """
    what, how = folder, os.O_RDONLY | os.O_DIRECTORY
    if folder.stat().st_mode & _OTHERS:
        what, how = folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    fd = os.open(what, how | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd, what)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, what: Path) -> None:
    if not flocks.acquire(fd, LOCK_WAIT_S):
        raise PreconditionFailed(
            f"Another process has held the lock of {what} for {LOCK_WAIT_S:g} s.",
            hint=f"`fuser -v {what}` names it; another start, or one that hangs",
        )


def served(path: Path) -> bool:
    """Return whether a process listens at ``path``, even if too busy to accept."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(os.fspath(path))
    return code in {0, errno.EAGAIN}

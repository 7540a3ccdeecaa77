"""The socket that a starter binds and hands, already listening, to the supervisor it starts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from coloctl import paths
from coloctl.errors import PairBusy, PreconditionFailed

_BACKLOG = 16


def listen(path: Path) -> socket.socket:
    """A listening unix socket at ``path`` with mode 0600; one that nobody serves is replaced.

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
    """Other starters wait meanwhile; it takes no longer than a bind."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def served(path: Path) -> bool:
    """Somebody listens at ``path``, even if too busy to accept."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(os.fspath(path))
    return code in {0, errno.EAGAIN}

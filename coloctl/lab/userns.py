"""Enter a user namespace in which the caller is root, with a mount namespace of its own.

Called by `lab.rootless`; the system calls are those of `lab.kernel`. The network namespace stays
the caller's, so that downloads work inside as well; every network that the lab needs is a namespace
that it makes itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from coloctl.clock import Deadline
from coloctl.errors import LabError
from coloctl.lab.kernel import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_REC,
    MS_SLAVE,
    call,
)

_RUN = Path("/run")
_NETNS = "netns"

#: The time for threads that were asked to end, such as those of a progress bar, to do so.
_THREADS_WAIT_S = 2.0
_ALLOW = (
    "run as root, or allow unprivileged user namespaces: user.max_user_namespaces above 0,"
    " kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0"
    " (those of them that this kernel has)"
)


def found() -> None:
    """Make the calling process root of a new user namespace with an empty /run/netns.

    It must have one thread only. Raises `LabError` when the system does not allow it.
    """
    _check_single_thread()
    uid, gid = os.geteuid(), os.getegid()
    with _explained("make a user namespace"):
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
        # Without this an unprivileged process may not write its group map (user_namespaces(7)).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    with _explained("mount a private /run in a user namespace"):
        call("mount", None, b"/", None, MS_REC | MS_SLAVE, None)
        _private_run()


def move_into(pidfd: int) -> None:
    """Make the calling process root of that process's user namespace, in the same folder.

    It must have one thread only. Raises `LabError` when that process is not the caller's own.
    """
    _check_single_thread()
    folder = Path.cwd()
    with _explained("enter the user namespace of the lab"):
        call("setns", pidfd, CLONE_NEWUSER | CLONE_NEWNS)
        os.chdir(folder)


def _private_run() -> None:
    """Mount a tmpfs on /run that shows all that was there, with an empty folder for namespaces.

    Mounting on /run/netns alone would need that folder to exist, and to last: a process that
    removes it outside takes every mount on it away, in other mount namespaces too (namespaces of
    networks with it).
    """
    before = os.open(_RUN, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call("mount", b"coloctl", os.fsencode(_RUN), b"tmpfs", 0, b"mode=755")
        old = Path(f"/proc/self/fd/{before}")
        for entry in sorted(old.iterdir()):
            if entry.name != _NETNS:
                # What cannot be shown (it vanished just now, or is unbindable) is left out.
                with contextlib.suppress(OSError):
                    _show(entry, _RUN / entry.name)
    finally:
        os.close(before)
    (_RUN / _NETNS).mkdir(mode=0o755)


def _show(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    call("mount", os.fsencode(source), os.fsencode(target), None, MS_BIND | MS_REC, None)


def _check_single_thread() -> None:
    """Require that the caller has one thread, at once or as soon as ending threads have ended."""
    tasks = Path("/proc/self/task")
    if not Deadline(_THREADS_WAIT_S).poll_blocking(lambda: len(list(tasks.iterdir())) == 1, 0.005):
        raise LabError("A user namespace can be entered only before the first thread starts.")


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn a refusal of the kernel into a `LabError` that names the ``what``."""
    try:
        yield
    except OSError as error:
        # ENOSPC is what unshare says when user.max_user_namespaces is reached.
        refused = error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC)
        raise LabError(
            f"Cannot {what}: {error.strerror}.", hint=_ALLOW if refused else None
        ) from None

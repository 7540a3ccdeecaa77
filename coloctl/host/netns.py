"""Implement a host for a named network namespace of this machine, as `ip netns` and the lab make
it.

`host.open_host` makes it; all but the namespace is `host.local`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from coloctl.errors import PreconditionFailed
from coloctl.host.local import LocalHost

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000


class NetnsHost(LocalHost):
    """The namespace ``/run/netns/NAME``; its thread lives there, and no other thread ever does."""

    def __init__(self, namespace: str) -> None:
        """Enter the namespace with the host's thread.

        Raises `PreconditionFailed` when there is no such namespace or no right to enter it.
        """
        path = _path(namespace)

        def enter() -> None:
            enter_namespace(path, namespace)

        super().__init__(f"netns:{namespace}", enter)
        self.namespace = namespace


def _path(namespace: str) -> Path:
    if not namespace or "/" in namespace or namespace in (".", ".."):
        raise PreconditionFailed(
            f"{namespace!r} cannot be a namespace's name.",
            hint='write `host = "netns:NAME"` with a name that `ip netns` lists',
        )
    return NETNS_DIR / namespace


def enter_namespace(path: Path, namespace: str) -> None:
    """Move the calling thread, and no other, into the namespace. Raises `PreconditionFailed`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise PreconditionFailed(
            f"There is no network namespace {namespace}.",
            hint="make the lab with `coloctl lab up`, or list what is there with `ip netns`",
        ) from None
    except OSError as error:
        raise PreconditionFailed(f"Cannot open {path}: {error.strerror}.") from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, CLONE_NEWNET) != 0:
            raise _not_entered(ctypes.get_errno(), path, namespace)
    finally:
        os.close(fd)


def _not_entered(code: int, path: Path, namespace: str) -> PreconditionFailed:
    if code == errno.EPERM:
        return PreconditionFailed(
            f"No right to enter the network namespace {namespace}.",
            hint="run as root, or inside the rootless lab that the namespace belongs to",
        )
    if code == errno.EINVAL:
        return PreconditionFailed(
            f"{path} is a left-over file and not a namespace.",
            hint=f"remove it with `ip netns delete {namespace}`, then `coloctl lab up`",
        )
    return PreconditionFailed(f"Cannot enter the namespace {namespace}: {os.strerror(code)}.")

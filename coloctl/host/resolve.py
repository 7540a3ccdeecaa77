"""Find out whether the name of a machine means the machine on which this process runs.

Called by `host.open_host` for an address of ssh. One pair file then serves on both of its
machines: each runs its own node without ssh. Invariant: a name that is doubtful is another machine.
It is dialled then, and the agent that answers names its machine.
"""

from __future__ import annotations

import os
import pwd
import socket
import threading
from contextlib import suppress
from functools import cache

from coloctl.errors import PreconditionFailed
from coloctl.model.sshaddress import SshAddress

#: How long a name server may take. A name that is not resolved by then is dialled.
RESOLVE_WAIT_S = 2.0

_SSH_PORT = 22


@cache
def is_here(address: SshAddress) -> bool:
    """Return whether the address is this machine's: its host name, or only addresses that it has.

    A port of its own leads elsewhere: such ports are forwarded to containers and guests. Blocks
    while the name is resolved, at most `RESOLVE_WAIT_S`, once in a process.
    """
    if address.port not in {None, _SSH_PORT}:
        return False
    if address.name == socket.gethostname():
        return True
    found = _addresses(address.name)
    return bool(found) and all(_can_be_bound(*one) for one in found)


def require_same_user(address: SshAddress, spec: str) -> None:
    """Check that this process is the user that the address names.

    Raises `PreconditionFailed`: a process here cannot become another user.
    """
    if not address.user:
        return
    me = _user()
    if address.user != me:
        raise PreconditionFailed(
            f'"{spec}" is this machine as user {address.user}, and coloctl runs as {me}.',
            hint=f"run coloctl as {address.user}",
        )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user id {os.geteuid()}"


def _addresses(name: str) -> set[tuple[int, str]]:
    """Resolve the name to families and addresses; none where no server answers in time."""
    found: set[tuple[int, str]] = set()

    def resolve() -> None:
        with suppress(OSError, UnicodeError):
            for family, _, _, _, at in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
                found.add((int(family), str(at[0])))

    # The call cannot be interrupted, and a process does not wait for its daemon threads.
    thread = threading.Thread(target=resolve, name="resolve", daemon=True)
    thread.start()
    thread.join(RESOLVE_WAIT_S)
    return set() if thread.is_alive() else found


def _can_be_bound(family: int, address: str) -> bool:
    """Return whether the address is one of this machine and namespace."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True

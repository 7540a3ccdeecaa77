"""Open the hosts on which a pair's QEMUs run, by the names that a pair file gives them.

Used by every layer above. `open_host` returns a `LocalHost`, a `NetnsHost` or a `RemoteHost`; all
implement `base.Host`. The last is imported when it is needed: the agent has no use for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coloctl.errors import SpecError
from coloctl.host import resolve
from coloctl.host.base import Host, Process
from coloctl.host.channel import carries, channel_pair
from coloctl.host.identity import Identity
from coloctl.host.local import LocalHost
from coloctl.host.netns import NetnsHost
from coloctl.host.process import as_sentence, identity_of, tail
from coloctl.host.records import Completed, Death, DeathProof
from coloctl.host.watching import Channel, FirstConnection
from coloctl.model import sshaddress
from coloctl.model.wires import Endpoint

if TYPE_CHECKING:
    from coloctl.host.remote.host import RemoteHost

__all__ = [
    "Channel",
    "Completed",
    "Death",
    "DeathProof",
    "Endpoint",
    "FirstConnection",
    "Host",
    "Identity",
    "LocalHost",
    "NetnsHost",
    "Process",
    "as_sentence",
    "carries",
    "channel_pair",
    "identity_of",
    "open_host",
    "tail",
]


def open_host(spec: str, *, pair: str = "") -> LocalHost | RemoteHost:
    """Open the host that ``spec`` names: ``local``, ``netns:NAME`` or ``ssh://[user@]name[:port]``.

    Close it with ``aclose``. An address of ssh that is this machine is opened as such. Another one
    is dialled at the first use; with ``pair`` its agent stays when the connection breaks. Raises
    `SpecError` for another scheme, and `PreconditionFailed` for a namespace that does not exist or
    may not be entered, and for another user of this machine.
    """
    scheme, colon, rest = spec.partition(":")
    if spec == "local":
        return LocalHost()
    if scheme == "netns" and colon:
        return NetnsHost(rest)
    if scheme == "ssh" and colon:
        return _open_ssh(spec, pair)
    raise SpecError(
        "host",
        f"{spec!r} names no kind of host that is known.",
        hint='write "local" for this machine, "netns:NAME" for one of its network namespaces or'
        ' "ssh://NAME" for another machine',
    )


def _open_ssh(spec: str, pair: str) -> LocalHost | RemoteHost:
    """Open the machine of that address; raises `SpecError`, `PreconditionFailed`."""
    try:
        address = sshaddress.parse(spec)
    except ValueError as error:
        raise SpecError("host", str(error), hint="write it like ssh://root@hv2") from None
    if resolve.is_here(address):
        resolve.require_same_user(address, spec)
        return LocalHost(spec)
    from coloctl.host.remote.dial import SshDial
    from coloctl.host.remote.host import RemoteHost

    return RemoteHost(spec, SshDial(address), pair=pair)

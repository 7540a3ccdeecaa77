"""Open the hosts on which a pair's QEMUs run, by the names that a pair file gives them.

Used by every layer above. `open_host` returns a `LocalHost` or a `NetnsHost`; both implement
`base.Host`.
"""

from __future__ import annotations

from coloctl.errors import SpecError
from coloctl.host.base import Host, Process
from coloctl.host.channel import carries, channel_pair
from coloctl.host.identity import Identity
from coloctl.host.local import LocalHost
from coloctl.host.netns import NetnsHost
from coloctl.host.process import as_sentence, identity_of, tail
from coloctl.host.records import Completed, Death, DeathProof
from coloctl.host.watching import Channel, FirstConnection
from coloctl.model.wires import Endpoint

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


def open_host(spec: str) -> LocalHost:
    """Open the host that ``spec`` names: ``local`` or ``netns:NAME``. Close it with ``aclose``.

    Raises `SpecError` for another scheme, and `PreconditionFailed` for a namespace that does not
    exist or may not be entered.
    """
    scheme, colon, rest = spec.partition(":")
    if spec == "local":
        return LocalHost()
    if scheme == "netns" and colon:
        return NetnsHost(rest)
    raise SpecError(
        "host",
        f"{spec!r} names no kind of host that is known.",
        hint='write "local" for this machine or "netns:NAME" for one of its network namespaces',
    )

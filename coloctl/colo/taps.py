"""Set the taps of one node of a pair up or down.

Called by `colo.launch`, when a QEMU starts and when a node is swept, by `ha.failover` and
`ha.fencing`, and wherever taps follow the role of a node; acts through `host.base`.

Invariant: `lower_free` never changes a tap that a process holds.
"""

from __future__ import annotations

import contextlib

from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.model.pair import NodeName, PairSpec


def names(spec: PairSpec, node: NodeName) -> list[str]:
    """Return the taps of ``node``, in the order of the pair's NICs."""
    return [nic.tap.ifname[node] for nic in spec.nics if nic.tap is not None]


async def set_all(spec: PairSpec, host: Host, node: NodeName, *, up: bool) -> None:
    """Set every tap of ``node`` up or down, one after the other; raises the first error."""
    for tap in names(spec, node):
        await host.tap(tap, up=up)


async def lower_free(spec: PairSpec, host: Host, node: NodeName) -> None:
    """Set the taps of ``node`` down, except those that a process holds: a living guest uses them.

    A tap or a namespace that is gone carries no frame, and is no error.
    """
    for tap in names(spec, node):
        with contextlib.suppress(ColoctlError):
            if not await host.tap_held(tap):
                await host.tap(tap, up=False)

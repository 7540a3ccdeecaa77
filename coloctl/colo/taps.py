"""Set the taps of one node of a pair up or down, and make and remove those that are coloctl's own.

Called by `colo.launch`, when a QEMU starts and when a node is swept, by `ha.failover` and
`ha.fencing`, by `supervisor.leftovers` for what a supervisor left, and wherever taps follow the
role of a node; acts through `host.base`.

Invariant: `lower_free` never changes a tap that a process holds, and `remove_made` removes none. A
tap of coloctl's own lives as long as the QEMU that it was made for; until it is swept its name and
mark follow from the pair as it was started, so that no crash hides it.
"""

from __future__ import annotations

import contextlib

from coloctl.colo.guard import table_name
from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.machine.netfilter import has_vnet_header
from coloctl.model.launch import Account, TapOrder
from coloctl.model.pair import NodeName, PairSpec
from coloctl.tasks import side_by_side


def names(spec: PairSpec, node: NodeName) -> list[str]:
    """Return the taps of ``node``, in the order of the pair's NICs."""
    return [nic.tap.ifname[node] for nic in spec.nics if nic.tap is not None]


def orders(
    spec: PairSpec, host: Host, node: NodeName, account: Account | None = None
) -> list[TapOrder]:
    """List the taps of ``node`` that coloctl makes itself, for a QEMU of ``account``.

    Raises `HostOutOfReach` for a host that was never reached.
    """
    return [
        TapOrder(
            ifname=nic.tap.ifname[node],
            bridge=nic.tap.bridge,
            mark=f"{table_name(spec, host)} {node} {nic.id}",
            vnet_header=has_vnet_header(nic),
            account=account,
        )
        for nic in spec.nics
        if nic.tap is not None and nic.tap.made and nic.tap.bridge is not None
    ]


async def require_usable(spec: PairSpec, host: Host, node: NodeName) -> None:
    """Require that a QEMU on ``node`` could open its taps now, or that they could be made.

    Raises `PreconditionFailed` with the reason.
    """

    async def is_missing(order: TapOrder) -> bool:
        _, up = await side_by_side(host.tap_room(order), host.tap_is_up(order.ifname))
        return up is None

    made = orders(spec, host, node)
    absent = await side_by_side(*map(is_missing, made))
    missing = {one.ifname for one, is_absent in zip(made, absent, strict=True) if is_absent}
    there = [tap for tap in names(spec, node) if tap not in missing]
    await side_by_side(*map(host.check_tap, there))


async def make(spec: PairSpec, host: Host, node: NodeName, account: Account | None) -> None:
    """Make the taps of ``node`` that are coloctl's own; raises `PreconditionFailed`."""
    await side_by_side(*map(host.make_tap, orders(spec, host, node, account)))


async def remove_free(spec: PairSpec, host: Host, node: NodeName) -> None:
    """Set the taps of ``node`` down, or remove them where coloctl made them.

    As `lower_free` and `remove_made`: a tap that a process holds is left as it is.
    """
    await lower_free(spec, host, node)
    await remove_made(spec, host, node)


async def remove_made(spec: PairSpec, host: Host, node: NodeName) -> None:
    """Remove the taps of ``node`` that coloctl made, if no process holds them.

    What cannot be asked or removed is left; the next start of the pair replaces it.
    """
    with contextlib.suppress(ColoctlError):
        for order in orders(spec, host, node):
            await host.remove_tap(order.ifname, order.mark)


async def set_all(spec: PairSpec, host: Host, node: NodeName, *, up: bool) -> None:
    """Set every tap of ``node`` up or down, one after the other; raises the first error."""
    for tap in names(spec, node):
        await host.tap(tap, up=up)


async def lower_free(spec: PairSpec, host: Host, node: NodeName) -> None:
    """Set the taps of ``node`` down, except those that a process holds: a living guest uses them.

    Those that coloctl makes are left to `remove_made`. A tap or a namespace that is gone carries no
    frame, and is no error.
    """
    others = (nic.tap.ifname[node] for nic in spec.nics if nic.tap and not nic.tap.made)
    for tap in others:
        with contextlib.suppress(ColoctlError):
            if not await host.tap_held(tap):
                await host.tap(tap, up=False)

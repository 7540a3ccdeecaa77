"""Make and remove the tap of a pair, a port of a bridge, by the kernel's ioctls and netlink.

Called by `host.local_access` in the namespace of the calling thread; `host.tap` opens the device
node, and `host.netdevice` finds devices and joins the bridge. A tap belongs to the program that
opened it until it is made persistent, which is the last step: one that is killed before leaves
none. The alias of a tap says which pair made it.

Invariant: a device without this pair's alias is never opened or changed, and a tap that a process
has open is never removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from coloctl.errors import PreconditionFailed
from coloctl.host import netdevice, tap
from coloctl.host.netdevice import NetDevice
from coloctl.model.launch import TapOrder

# Numbers from linux/if_tun.h.
_TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CB, 0x400454CC, 0x400454CE
_EXCLUSIVE = 0x8000  # IFF_TUN_EXCL: fail where there is a device of that name

_BRIDGE = "bridge"
#: Linux takes the lowest MAC address of the ports for a bridge's own: these are above all others.
_MAC_BEGINS = b"\xfe"


def require_room(order: TapOrder, host: str) -> None:
    """Require that the tap could be made now; nothing is changed.

    Raises `PreconditionFailed` where there is no such bridge on ``host``, or where a device that
    this pair did not make has the name.
    """
    with netdevice.links() as links, _explained(order, host):
        _bridge(netdevice.find(links, order.bridge), order, host)
        _require_own(netdevice.find(links, order.ifname), order, host)


def make(order: TapOrder, host: str) -> None:
    """Make the tap, down, as a port of its bridge; one that this pair left is replaced.

    Raises `PreconditionFailed` as `require_room`, where a process has the tap of this pair open,
    and where the right is missing.
    """
    with netdevice.links() as links, _explained(order, host):
        bridge = _bridge(netdevice.find(links, order.bridge), order, host)
        _require_own(netdevice.find(links, order.ifname), order, host)
        if not remove(order.ifname, order.mark):
            raise PreconditionFailed(
                f"The tap {order.ifname} on {host} is in use by another process.",
                hint=f"`grep -l 'iff:.*{order.ifname}$' /proc/[0-9]*/fdinfo/*` there finds it",
            )
        header = tap.IFF_VNET_HDR if order.vnet_header else 0
        node = tap.opened(order.ifname, _EXCLUSIVE | header)
        try:
            _silence_ipv6(order.ifname)
            made = netdevice.find(links, order.ifname)
            assert made is not None, "it is there as long as its descriptor is open"
            digest = hashlib.blake2s(f"{order.mark} {order.ifname}".encode(), digest_size=5)
            netdevice.mark_and_join(
                links,
                made.index,
                alias=order.mark,
                mac=_MAC_BEGINS + digest.digest(),
                mtu=bridge.mtu,
                bridge=bridge.index,
            )
            account = order.account
            fcntl.ioctl(node, _TUNSETOWNER, os.geteuid() if account is None else account.uid)
            fcntl.ioctl(node, _TUNSETGROUP, os.getegid() if account is None else account.gid)
            fcntl.ioctl(node, _TUNSETPERSIST, 1)
        finally:
            os.close(node)


def remove(ifname: str, mark: str) -> bool:
    """Remove the tap, if it has that alias; returns whether none of this pair is left.

    It is held meanwhile, so that no QEMU can open it between the look and the end. One that a
    process has open stays, and so does a device that another program made. Raises `OSError`, and
    `PreconditionFailed` where the device node cannot be opened.
    """
    with netdevice.links() as links:
        found = netdevice.find(links, ifname)
    if found is None or found.alias != mark:
        return True
    try:
        node = tap.opened(ifname, tap.IFF_VNET_HDR)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    try:
        fcntl.ioctl(node, _TUNSETPERSIST, 0)
    finally:
        os.close(node)
    return True


def _bridge(found: NetDevice | None, order: TapOrder, host: str) -> NetDevice:
    if found is None:
        raise PreconditionFailed(
            f"There is no bridge {order.bridge} on {host}.",
            hint=f"`ip link add {order.bridge} type bridge` there, or correct `bridge` in [[nic]]",
        )
    if found.kind != _BRIDGE:
        raise PreconditionFailed(
            f"{order.bridge} on {host} is not a bridge of the kernel.",
            hint="for another switch make the taps yourself, and name them by `tap` in [[nic]]",
        )
    return found


def _require_own(found: NetDevice | None, order: TapOrder, host: str) -> None:
    if found is not None and found.alias != order.mark:
        raise PreconditionFailed(
            f"There is a device {order.ifname} on {host} that this pair did not make.",
            hint=f"`ip -d link show {order.ifname}` there shows it; coloctl leaves it alone",
        )


def _silence_ipv6(ifname: str) -> None:
    """Keep the host from sending messages of its own into the guest's network by this port."""
    with contextlib.suppress(OSError):  # a kernel without IPv6, or a /proc/sys that is read-only
        Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6").write_text("1")


@contextlib.contextmanager
def _explained(order: TapOrder, host: str) -> Iterator[None]:
    """Replace an `OSError` of the kernel by a `PreconditionFailed` that names the tap."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PreconditionFailed(
                f"No right to make a tap on {host}.",
                hint="run as root, or make the taps beforehand and name them by `tap` in [[nic]]",
            ) from None
        raise PreconditionFailed(
            f"The tap {order.ifname} cannot be made on {host}: {error.strerror}."
        ) from None

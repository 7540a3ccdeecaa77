"""Make the devices of a lab where they are missing; configure, list and clear them.

Called by `lab.network` when a lab is built, described or removed, and by `lab.machine` and
`lab.machines` when a machine is switched on or off.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from coloctl.errors import LabError
from coloctl.lab import layout, netns
from coloctl.lab.layout import BRIDGE, Layout, Wire
from coloctl.lab.link import IFF_UP, check_checksums, explained, index_of, netlink

_MARK = "coloctl"
_LOOPBACK = 1  # the loopback device is the first in every namespace
_TAP = 2  # IFLA_TUN_TYPE: IFF_TAP of linux/if_tun.h


def lab_of(ns: str, kind: str) -> str | None:
    """Return the name of the lab of that ``kind`` that owns the namespace; None for no such lab."""
    alias = netlink(ns, lambda ip: ip.link("get", index=_LOOPBACK)[0].get("ifalias")) or ""
    mark = f"{_MARK} {kind} "
    return alias.removeprefix(mark) if alias.startswith(mark) else None


def furnish(ns: str, lab: str, kind: str) -> None:
    """Mark the calling thread's new namespace, switch IPv6 off and bring its loopback up.

    Raises `LabError` where the kernel refuses that.
    """
    _silence_ipv6(ns)
    with explained(ns), IPRoute() as ip:
        ip.link("set", index=_LOOPBACK, ifalias=f"{_MARK} {kind} {lab}", state="up")


def _silence_ipv6(ns: str) -> None:
    # Router and listener messages would reach the guests at times of their own.
    for which in ("all", "default"):
        switch = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        try:
            switch.write_text("1")
        except FileNotFoundError:
            return  # this kernel has no IPv6 at all
        except OSError as error:
            raise LabError(
                f"IPv6 cannot be switched off in {ns}: {error.strerror}.",
                hint="/proc/sys must be writable; a container needs to be privileged",
            ) from None


def ensure_wire(lab: str, plan: Layout, wire: Wire) -> None:
    """Make both ends of the wire, each in its namespace of the lab, where they are missing."""
    near, far = wire.ends
    with netns.path(plan.namespace(lab, far.role)).open("rb") as other:

        def lay(ip: Any) -> None:
            if index_of(ip, near.device) is not None:
                return
            # One message makes both ends where they belong: no crash leaves half a wire.
            ip.link(
                "add",
                ifname=near.device,
                kind="veth",
                address=near.mac,
                mtu=layout.MTU,
                peer={
                    "ifname": far.device,
                    "address": far.mac,
                    "mtu": layout.MTU,
                    "net_ns_fd": other.fileno(),
                },
            )

        netlink(plan.namespace(lab, near.role), lay)


def arrange(plan: Layout, role: str, ip: Any) -> None:
    """Configure and connect the devices of that machine, and bring them up."""
    mac = plan.bridge_macs.get(role)
    bridge = _ensure_bridge(ip, mac) if mac is not None else 0
    for wire in plan.wires.values():
        for end in wire.ends:
            if end.role == role:
                _arrange_end(ip, end.device, end.address, bridge if end.in_bridge else 0)
                if wire.strict:
                    check_checksums(end.device)
                if end.address == layout.CLIENT:
                    _arrange_end(ip, end.device, layout.SECOND_CLIENT, 0)
    for taps in plan.taps:
        if role in taps:
            _ensure_tap(ip, taps[role], bridge)


def _ensure_bridge(ip: Any, mac: str) -> int:
    if index_of(ip, BRIDGE) is None:
        ip.link(
            "add",
            ifname=BRIDGE,
            kind="bridge",
            address=mac,
            br_stp_state=0,
            br_forward_delay=0,
            br_mcast_snooping=0,
        )
    index = index_of(ip, BRIDGE)
    assert index is not None
    ip.link("set", index=index, state="up")
    return index


def _arrange_end(ip: Any, device: str, address: str | None, bridge: int) -> None:
    index = index_of(ip, device)
    if bridge:
        ip.link("set", index=index, master=bridge)
    if address:
        ip.addr("replace", index=index, address=address, prefixlen=layout.PREFIX_LENGTH)
    ip.link("set", index=index, state="up")


def clear(ip: Any) -> None:
    """Remove every device but the loopback from the namespace."""
    for link in ip.get_links():
        if link["index"] != _LOOPBACK:
            # What cannot be deleted is a device of the kernel's own, such as sit0.
            with contextlib.suppress(NetlinkError):
                ip.link("del", index=link["index"])


def listed(ip: Any) -> list[dict[str, Any]]:
    """List the devices of the namespace as documents, in the kernel's order."""
    links = list(ip.get_links())
    names = {link["index"]: link.get("ifname") for link in links}
    addresses: dict[int, list[str]] = {}
    for entry in ip.get_addr():
        addresses.setdefault(entry["index"], []).append(
            f"{entry.get('address')}/{entry['prefixlen']}"
        )
    return [
        {
            "name": link.get("ifname"),
            "kind": link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "loopback",
            "mac": link.get("address"),
            "mtu": link.get("mtu"),
            "up": bool(link["flags"] & IFF_UP),
            "bridge": names.get(link.get("master")),
            "addresses": addresses.get(link["index"], []),
        }
        for link in links
    ]


def _ensure_tap(ip: Any, tap: str, bridge: int) -> None:
    """Make ``tap`` where it is missing, and make it a port of ``bridge``.

    The tap is persistent and carries virtio-net headers. A new tap is down: the launcher raises the
    one whose QEMU may send. An existing tap keeps its
    state, because a guest may be using it.
    """
    if index_of(ip, tap) is None:
        ip.link(
            "add", ifname=tap, kind="tun", tun_type=_TAP, tun_vnet_hdr=1, tun_owner=os.geteuid()
        )
    ip.link("set", index=index_of(ip, tap), master=bridge)

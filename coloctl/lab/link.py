"""Netlink work in the lab's namespaces, and links that can be cut and healed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT

from coloctl.errors import LabError
from coloctl.lab import netns
from coloctl.lab.layout import End, Wire, namespace

T = TypeVar("T")

IFF_UP = 0x1  # linux/if.h

#: What a device may leave to the other side or to later: with all of it off, every frame is cut to
#: size and its checksum computed before it leaves, and looked at where it arrives.
OFFLOADS = (
    "rx-checksumming",
    "tx-checksumming",
    "scatter-gather",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
)


def netlink(name: str, work: Callable[[Any], T]) -> T:
    """The result of ``work(ip)`` with a route socket of the namespace; raises `LabError`."""

    def run() -> T:
        with explained(name), IPRoute() as ip:
            return work(ip)

    return netns.inside(name, run)


def index_of(ip: Any, device: str) -> int | None:
    """The device's index in the namespace of ``ip``, None when it has no such device."""
    return next(iter(ip.link_lookup(ifname=device)), None)


def check_checksums(device: str) -> None:
    """The device, in the calling thread's namespace, leaves no checksum and no cutting to others.

    Raises `LabError` when the kernel does not do as told.
    """
    with contextlib.closing(IoctlEthtool(device)) as ethtool:
        for offload in OFFLOADS:
            ethtool.set_offload_flag(offload, 0)
        flags = ethtool.get_offload_flags()
    still_on = [offload for offload in OFFLOADS if flags[offload]]
    if still_on:
        raise LabError(
            f"The kernel keeps {', '.join(still_on)} on for {device},"
            " so a wrong checksum could reach the client unseen."
        )


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a link: what leaves the namespace through ``device``."""

    namespace: str
    device: str

    def drop(self) -> None:
        """Frames sent here vanish; neither the carrier nor the sender notices.

        The blackhole discipline tells the sender that a frame went out, as a real wire would, and
        is part of every kernel that has traffic control (netem is not).
        """
        self._with_index(lambda ip, index: ip.tc("replace", "blackhole", index))

    def deliver(self) -> None:
        """Frames sent here arrive at the other end."""

        def clear(ip: Any, index: int) -> None:
            if self._discipline(ip, index) != "noqueue":
                ip.tc("del", index=index, parent=TC_H_ROOT)

        self._with_index(clear)

    def plug(self, *, up: bool) -> None:
        """The device is up or down; down, the other end has no carrier either."""
        state = "up" if up else "down"
        self._with_index(lambda ip, index: ip.link("set", index=index, state=state))

    def state(self) -> str:
        """Up, cut or unplugged."""

        def look(ip: Any, index: int) -> str:
            if not ip.link("get", index=index)[0]["flags"] & IFF_UP:
                return "unplugged"
            return "cut" if self._discipline(ip, index) == "blackhole" else "up"

        return self._with_index(look)

    @staticmethod
    def _discipline(ip: Any, index: int) -> str:
        roots = [q for q in ip.get_qdiscs(index=index) if q["parent"] == TC_H_ROOT]
        return str(roots[0].get_attr("TCA_KIND")) if roots else "noqueue"

    def _with_index(self, work: Callable[[Any, int], T]) -> T:
        def run(ip: Any) -> T:
            index = index_of(ip, self.device)
            if index is None:
                raise LabError(
                    f"{self.namespace} has no device {self.device}.",
                    hint="`coloctl lab up` mends a lab that is not whole",
                )
            return work(ip, index)

        return netlink(self.namespace, run)


@dataclass(frozen=True, slots=True)
class Link:
    """A wire of a standing lab, with both ends in hand."""

    name: str
    ends: tuple[LinkEnd, LinkEnd]

    @classmethod
    def of(cls, lab: str, wire: Wire) -> Link:
        """The link that ``wire`` is in that lab."""

        def held(end: End) -> LinkEnd:
            return LinkEnd(namespace(lab, end.role), end.device)

        return cls(wire.name, (held(wire.a), held(wire.b)))

    def cut(self, *, carrier: bool = False) -> None:
        """Nothing passes any more, in silence; with ``carrier`` the plug is pulled as well.

        Silence is how a network mostly fails: no reset comes, no carrier is lost. Without the
        plug the addresses lose their routes too, so senders get an error at once.
        """
        for end in self.ends:
            end.plug(up=False) if carrier else end.drop()

    def heal(self) -> None:
        """Everything passes again, whichever way the link was cut."""
        for end in self.ends:
            end.deliver()
            end.plug(up=True)

    def state(self) -> str:
        """Up, cut, unplugged, or mixed when the ends differ."""
        first, second = (end.state() for end in self.ends)
        return first if first == second else "mixed"


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what netlink or an ioctl refuses in that namespace into a `LabError`."""
    try:
        yield
    except NetlinkError as error:
        raise _refused(name, error.code) from None
    except OSError as error:
        raise _refused(name, error.errno or 0) from None


def _refused(name: str, number: int) -> LabError:
    hint = {
        errno.EPERM: "run as root; without root, through an unprivileged user namespace",
        errno.EOPNOTSUPP: "the kernel lacks veth, bridge or tun: `modprobe veth bridge tun`",
    }.get(number)
    return LabError(f"The kernel refused to furnish {name}: {os.strerror(number)}.", hint=hint)

"""Cut, impair and heal the lab's links, by netlink in the lab's namespaces.

Called by `lab.network`, `lab.devices`, `lab.machine` and `lab.machines`; calls `lab.pump` where the
kernel cannot impair a wire.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.protocols import ETH_P_ALL

from coloctl.errors import LabError
from coloctl.lab import netns, portcut, pump
from coloctl.lab.impairment import Impairment
from coloctl.lab.layout import End, Layout, Wire

T = TypeVar("T")

IFF_UP = 0x1  # linux/if.h
_EGRESS = 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS), linux/pkt_sched.h

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
    """Return ``work(ip)``, done with a route socket of the namespace; raises `LabError`."""

    def run() -> T:
        with explained(name), IPRoute() as ip:
            return work(ip)

    return netns.inside(name, run)


def index_of(ip: Any, device: str) -> int | None:
    """Find the device's index in the namespace of ``ip``, None when it has no such device."""
    return next(iter(ip.link_lookup(ifname=device)), None)


def check_checksums(device: str) -> None:
    """Make the device compute every checksum and cut every frame itself.

    It belongs to the calling thread's namespace. Raises `LabError` when the kernel keeps one of
    `OFFLOADS` on.
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


def state_of(ip: Any, index: int) -> str:
    """Return the state of one end of a link: up, cut, unplugged or impaired."""
    if not ip.link("get", index=index)[0]["flags"] & IFF_UP:
        return "unplugged"
    kinds = _disciplines(ip, index)
    if kinds["root"] == "blackhole":
        return "cut"
    return "impaired" if "clsact" in kinds or kinds["root"] == "netem" else "up"


def _disciplines(ip: Any, index: int) -> dict[str, str]:
    """Return the kinds of the disciplines: ``root`` (noqueue where there is none), others."""
    kinds = {"root": "noqueue"}
    for discipline in ip.get_qdiscs(index=index):
        kind = str(discipline.get_attr("TCA_KIND"))
        kinds["root" if discipline["parent"] == TC_H_ROOT else kind] = kind
    return kinds


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a link: what leaves the namespace through ``device``."""

    namespace: str
    device: str

    def drop(self) -> None:
        """Drop frames sent here; neither the carrier nor the sender notices.

        The blackhole discipline reports to the sender that a frame went out, as a real wire would,
        and is part of every kernel that has traffic control (netem is not).
        """
        self._with_index(lambda ip, index: ip.tc("replace", "blackhole", index))

    def impair(self, impairment: Impairment) -> bool:
        """Ask the kernel to impair frames sent here; return False if it cannot by netem."""
        arguments = impairment.netem()
        if arguments is None:
            return False

        def discipline(ip: Any, index: int) -> bool:
            try:
                ip.tc("replace", "netem", index, **arguments)
            except NetlinkError as error:
                if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
                    return False
                raise
            return True

        return self._with_index(discipline)

    def detour(self) -> None:
        """Redirect frames sent here into the tap of a pump that waits for them."""

        def redirect(ip: Any, index: int) -> None:
            tap = index_of(ip, pump.tap_of(self.device))
            if tap is None:
                raise LabError(f"The pump of {self.device} in {self.namespace} has ended.")
            ip.tc("add", "clsact", index)
            ip.tc(
                "add-filter",
                "u32",
                index,
                parent=_EGRESS,
                prio=1,
                protocol=ETH_P_ALL,
                target=0,  # pyroute2 wants one; the action decides
                keys=["0x0/0x0+0"],
                action={
                    "kind": "mirred",
                    "direction": "egress",
                    "action": "redirect",
                    "ifindex": tap,
                },
            )

        self._with_index(redirect)

    def deliver(self) -> None:
        """Deliver frames sent here to the other end again, at once and all of them."""

        def clear(ip: Any, index: int) -> None:
            kinds = _disciplines(ip, index)
            if kinds["root"] != "noqueue":
                ip.tc("del", index=index, parent=TC_H_ROOT)
            if "clsact" in kinds:
                ip.tc("del", "clsact", index)

        self._with_index(clear)

    def plug(self, *, up: bool) -> None:
        """Set the device up or down; when it is down, the other end has no carrier either."""
        state = "up" if up else "down"
        self._with_index(lambda ip, index: ip.link("set", index=index, state=state))

    def state(self) -> str:
        """Return the state of this end: up, cut, unplugged or impaired."""

        return self._with_index(state_of)

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
    def of(cls, lab: str, plan: Layout, wire: Wire) -> Link:
        """Return the link that ``wire`` is in that lab."""

        def held(end: End) -> LinkEnd:
            return LinkEnd(plan.namespace(lab, end.role), end.device)

        return cls(wire.name, (held(wire.a), held(wire.b)))

    def cut(self, *, carrier: bool = False, sender: str | None = None) -> None:
        """Cut the link in silence; with ``carrier`` the plug is pulled as well.

        Silence is how a network mostly fails: no reset comes, no carrier is lost. Without the
        plug the addresses lose their routes too, so senders get an error at once. With a
        ``sender``, a namespace, only what that one sends vanishes; its plug takes both ways. Raises
        `LabError` for a sender without an end of it.
        """
        for end in self._senders(sender):
            end.plug(up=False) if carrier else end.drop()

    def impair(self, impairment: Impairment, *, sender: str | None = None) -> None:
        """Apply the impairment to each frame, or only to those that ``sender`` sends.

        netem does it where the kernel has it. Elsewhere a pump does, a process that ends with this
        one; then nothing passes until the link is healed. An earlier impairment ends.
        Raises `LabError` when neither can; the link is healed then.
        """
        self.clear()
        ends = self._senders(sender)
        try:
            if all(end.impair(impairment) for end in ends):
                return
            pump.start(self.name, [(end.namespace, end.device) for end in ends], impairment)
            for end in ends:
                end.detour()
        except BaseException:
            self.clear()
            raise

    def cut_ports(self, service: str, *, tcp: Iterable[int] = (), udp: Iterable[int] = ()) -> None:
        """Cut ports: what comes from or goes to one of them vanishes at both ends.

        Established connections are cut too. ``service`` names the cut. Only what an end itself
        receives is looked at, so this serves links whose ends have addresses.
        """
        for end in self.ends:
            portcut.close(end.namespace, end.device, service, tcp=tcp, udp=udp)

    def pass_ports(self, service: str | None = None) -> None:
        """End the cuts of ports: those of that service, or all."""
        for end in self.ends:
            portcut.open_again(end.namespace, end.device, service)

    def clear(self) -> None:
        """End cuts and impairments of frames, and the pumps; ports that are cut stay so."""
        for end in self.ends:
            end.deliver()
            end.plug(up=True)
        self.end_pumps()

    def end_pumps(self) -> None:
        """End every process that holds frames of this link."""
        for end in self.ends:
            pump.end(self.name, end.namespace)

    def heal(self) -> None:
        """Undo every cut and impairment of the link, also those that another process made."""
        self.clear()
        self.pass_ports()

    def _senders(self, sender: str | None) -> tuple[LinkEnd, ...]:
        chosen = tuple(end for end in self.ends if sender in (None, end.namespace))
        if not chosen:
            raise LabError(
                f"The link {self.name} has no end in {sender}.",
                hint=f"it has {' and '.join(end.namespace for end in self.ends)}",
            )
        return chosen

    def state(self) -> str:
        """Return the link's state: up, cut, unplugged, impaired, or mixed when the ends differ."""
        first, second = (end.state() for end in self.ends)
        return first if first == second else "mixed"


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what netlink or an ioctl refuses in that namespace into a `LabError`."""
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

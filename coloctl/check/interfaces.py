"""Examine the bridges, bonds and replication addresses of a machine.

Called by `check.machine_there`; asks iproute2 there through `host.base`, and computes with
`colo.bridgeport` how long a port under STP is silent.

Rules: a bridge on which a pair's guest is, must forward at once and reach each address by one port.
So STP is warned of, and a bond below it that changes the port of an address. A replication link is
one TCP connection per wire, whose segments must stay in their order: a bond that sends them by
turns is warned of. Example: balance-rr gives many connections the rate of two links, and slows each
one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from coloctl.check.finding import Precondition, Severity
from coloctl.check.machine import COMMAND_DEADLINE_S
from coloctl.colo import bridgeport
from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.model.wires import Endpoint

Device = Mapping[str, Any]

#: Modes of a bond that harm a replication link, and by what (Documentation/networking/bonding.rst).
_LINK_MODES = {
    "balance-rr": "sends one connection over several links in turn, so that its segments overtake "
    "each other and are sent again",
    "broadcast": "sends each frame on every link, so that the peer gets it more than once",
    "balance-tlb": "moves connections between links and receives on one of them alone",
    "balance-alb": "moves the peer to another address by ARP, which looks like a link that breaks",
}
#: Modes that keep the address of a guest on one port of the switch.
_LAN_MODES = ("active-backup", "802.3ad")


async def examine_interfaces(
    host: Host, addresses: Sequence[str], bridges: Collection[str]
) -> list[Precondition]:
    """Report the machine's bridges and bonds, and whether its ``addresses`` can be used.

    ``bridges`` are those that pairs name on this machine. Raises `ColoctlError`.
    """
    done = await host.run(["ip", "-j", "-d", "addr"], deadline_s=COMMAND_DEADLINE_S)
    try:
        devices = json.loads(done.stdout)
    except ValueError:
        devices = None
    if not isinstance(devices, list):
        sentence = f"iproute2 on {host.machine.name} does not describe its devices."
        return [Precondition("bridges", Severity.INFO, sentence, "`apt-get install iproute2`")]
    name = host.machine.name
    found = [*bridge_findings(name, devices, bridges), *bond_findings(name, devices, addresses)]
    for address in addresses:
        found.append(await _address(host, address, devices))
    return found


def bridge_findings(
    machine: str, devices: Sequence[Device], used: Collection[str]
) -> Iterator[Precondition]:
    """Report each bridge; one that no pair uses is not warned of. Pure."""
    bridges = {str(one["ifname"]): one for one in devices if _kind(one) == "bridge"}
    for name in sorted(set(used) - bridges.keys()):
        sentence = f"There is no bridge {name} on {machine}."
        hint = f"`ip link add {name} type bridge` there, or correct `bridge` in [[nic]]"
        yield Precondition("bridges", Severity.ERROR, sentence, hint)
    if not bridges and not used:
        sentence = f"There is no bridge on {machine}; a guest's network card needs one."
        hint = "`ip link add br0 type bridge` there, with the port of the guests' LAN in it"
        yield Precondition("bridges", Severity.INFO, sentence, hint)
    for name, bridge in bridges.items():
        severity = Severity.WARNING if name in used else Severity.INFO
        silent_s = bridgeport.silent_s(bridge)
        if silent_s:
            yield Precondition(
                "bridges",
                severity,
                f"Bridge {name} on {machine} runs STP: after a failover its port drops every "
                f"frame of a guest for {silent_s:g} s.",
                f"`ip link set {name} type bridge stp_state 0` there, where the bridge cannot be "
                "part of a loop",
            )
        bonds = [one for one in devices if one.get("master") == name and _kind(one) == "bond"]
        wrong = [one for one in bonds if _mode(one) not in _LAN_MODES]
        for bond in wrong:
            yield Precondition(
                "bridges",
                severity,
                f"{bond['ifname']} in bridge {name} on {machine} is a bond in mode {_mode(bond)}: "
                "after a failover it may send the guest's frames by another port than the switch "
                "expects.",
                "use active-backup or 802.3ad there",
            )
        if not silent_s and not wrong:
            sentence = f"Bridge {name} on {machine} forwards at once: it runs no STP."
            yield Precondition("bridges", Severity.OK, sentence)


def bond_findings(
    machine: str, devices: Sequence[Device], addresses: Collection[str]
) -> Iterator[Precondition]:
    """Report the bonds by which the replication addresses are reached. Pure."""
    for address in addresses:
        for bond in _below(devices, _owner(devices, address)):
            name, mode = bond["ifname"], _mode(bond)
            if mode in _LINK_MODES:
                yield Precondition(
                    "bonding",
                    Severity.WARNING,
                    f"{name} on {machine}, which has {address}, is a bond in mode {mode}: it "
                    f"{_LINK_MODES[mode]}.",
                    "use active-backup or 802.3ad for the replication link",
                )
            elif not _watches(bond):
                yield Precondition(
                    "bonding",
                    Severity.WARNING,
                    f"{name} on {machine}, which has {address}, does not watch its links: frames "
                    "go on into one that is dead.",
                    f"`ip link set {name} type bond miimon 100` there",
                )
            else:
                sentence = f"{name} on {machine}, which has {address}, is a bond in mode {mode}."
                yield Precondition("bonding", Severity.OK, sentence)


async def _address(host: Host, address: str, devices: Sequence[Device]) -> Precondition:
    """Try to listen at a replication address."""
    name, machine, which = "address", host.machine.name, ip_address(address)
    if (owner := _owner(devices, address)) is None:
        sentence = f"{machine} does not have the address {address}."
        hint = f"`ip addr add {address}/{'24' if which.version == 4 else '64'} dev DEVICE` there"
        return Precondition(name, Severity.ERROR, sentence, hint)
    entry = next(one for one in owner["addr_info"] if _same(one, address))
    if entry.get("dadfailed"):
        sentence = f"Another machine on the network of {machine} has its address {address} too."
        return Precondition(name, Severity.ERROR, sentence, "give one of both another address")
    try:
        (await host.listen(Endpoint(address, 0))).close()
    except ColoctlError as error:
        return Precondition(name, Severity.ERROR, error.message, error.hint or "")
    sentence = f"{machine} listens at {address} (IPv{which.version}, {owner['ifname']})."
    return Precondition(name, Severity.OK, sentence)


def _owner(devices: Sequence[Device], address: str) -> Device | None:
    """Return the device that has the address."""
    return next(
        (one for one in devices if any(_same(each, address) for each in one.get("addr_info", ()))),
        None,
    )


def _same(entry: Mapping[str, Any], address: str) -> bool:
    return "local" in entry and ip_address(entry["local"]) == ip_address(address)


def _below(devices: Sequence[Device], device: Device | None) -> Iterator[Device]:
    """Yield the bonds on which a device lies: itself, what it is a VLAN of, ports of a bridge."""
    named = {one["ifname"]: one for one in devices}
    waiting, seen = [device] if device else [], set()
    while waiting:
        one = waiting.pop()
        if one["ifname"] in seen:
            continue
        seen.add(one["ifname"])
        if _kind(one) == "bond":
            yield one
            continue
        if one.get("link") in named:
            waiting.append(named[one["link"]])
        waiting += [port for port in devices if port.get("master") == one["ifname"]]


def _kind(device: Device) -> str:
    return str(device.get("linkinfo", {}).get("info_kind", ""))


def _mode(bond: Device) -> str:
    return str(bond.get("linkinfo", {}).get("info_data", {}).get("mode", ""))


def _watches(bond: Device) -> bool:
    data = bond.get("linkinfo", {}).get("info_data", {})
    return bool(data.get("miimon") or data.get("arp_interval"))

"""Examine the network of a pair: addresses, ports, taps and bridges, on the hosts where they are.

Called by `check.doctor`; asks through `host.base`, `colo.taps` about taps, `colo.bridgeport` about
bridges, and `colo.frames` about full frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from coloctl import paths
from coloctl.check.finding import Precondition, Severity, guarded
from coloctl.check.machine import COMMAND_DEADLINE_S
from coloctl.colo import bridgeport, frames, guard, taps
from coloctl.colo.ground import one_machine
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.base import Host
from coloctl.host.channel import channel_pair
from coloctl.machine.netfilter import has_vnet_header
from coloctl.model.pair import NODES, NicSpec, NodeName, PairSpec, TapSpec, other
from coloctl.model.wires import Endpoint, Wires

LINK_WAIT_S = 3.0

Hosts = Mapping[NodeName, Host]


async def examine_network(spec: PairSpec, hosts: Hosts) -> list[Precondition]:
    """Find all that is to report about the pair's links."""
    findings = []
    for node in NODES:
        findings += await guarded("replication link", _link(spec, hosts, node))
        findings += await guarded("ports", _ports(spec, hosts[node], node))
        findings += await guarded("strangers", _strangers(spec, hosts[node], node))
    findings += await guarded("mtu", _frames(spec, hosts))
    for nic in spec.nics:
        findings += await guarded(f"nic {nic.id}", _nic(spec, nic, hosts))
    return findings


async def _frames(spec: PairSpec, hosts: Hosts) -> list[Precondition]:
    """Try frames of the full size between two machines, both ways."""
    a, b = (hosts[node] for node in NODES)
    if spec.shares_machine() or one_machine(a.machine, b.machine):
        return []
    try:
        figures = await frames.measured(a, b, spec.nodes["b"].address)
    except PreconditionFailed:  # `_link` has reported it
        return []
    if lost := frames.lost_frame(a.machine.name, b.machine.name, figures):
        return [Precondition("mtu", Severity.ERROR, lost, frames.ONE_MTU)]
    if not figures.full_frame:
        return []
    sentence = f"Frames of {figures.mtu} bytes pass from node a, of {figures.back_mtu} from node b."
    return [Precondition("mtu", Severity.OK, sentence)]


async def _link(spec: PairSpec, hosts: Hosts, node: NodeName) -> list[Precondition]:
    """Make one connection to a port that the kernel chooses, and close it again."""
    if spec.shares_host():
        sentence = "Both nodes share one host: their QEMUs meet at unix sockets of the pair's own."
        return [Precondition("replication link", Severity.OK, sentence)] if node == "a" else []
    address = spec.nodes[node].address
    here, there = await channel_pair(
        hosts[node],
        hosts[other(node)],
        Endpoint(address, 0),
        nodelay=True,
        deadline_s=LINK_WAIT_S,
    )
    with here, there:
        sentence = f"Node {other(node)} reaches node {node} at {address}."
        return [Precondition("replication link", Severity.OK, sentence)]


async def _ports(spec: PairSpec, host: Host, node: NodeName) -> list[Precondition]:
    address = spec.nodes[node].address
    taken = await host.ports_in_use(address)
    wanted = Wires(spec, paths.pair_dir(spec.name)).ports()
    if not wanted:
        return [Precondition("ports", Severity.OK, "None is needed.")] if node == "a" else []
    busy = [
        Precondition(
            "ports",
            Severity.ERROR,
            f"Port {port} of {address} on node {node}, needed for {purpose}, is in use.",
            "a running pair holds its ports; otherwise set replication.base_port to a free range",
        )
        for port, purpose in wanted.items()
        if port in taken
    ]
    listed = ", ".join(str(port) for port in sorted(wanted))
    return busy or [Precondition("ports", Severity.OK, f"{listed} are free on node {node}.")]


async def _strangers(spec: PairSpec, host: Host, node: NodeName) -> list[Precondition]:
    """Try the packet rules that keep other users from the pair's ports, and remove them again."""
    wires = Wires(spec, paths.pair_dir(spec.name))
    if not wires.ports():
        return []
    scratch = guard.guarded(wires, node, f"coloctl:doctor:{spec.name}")
    try:
        await host.guard(scratch)
        await host.unguard(scratch.name)
    except PreconditionFailed as error:
        sentence = f"Other users may reach the ports of node {node}: {error.message}"
        return [Precondition("strangers", Severity.WARNING, sentence, error.hint or "")]
    sentence = f"Packet rules can reserve the ports of node {node} for the peer alone."
    return [Precondition("strangers", Severity.OK, sentence)]


async def _nic(spec: PairSpec, nic: NicSpec, hosts: Hosts) -> list[Precondition]:
    name = f"nic {nic.id}"
    if nic.tap is None:
        return [Precondition(name, Severity.INFO, "It has no tap: its link leads nowhere.")]
    findings = []
    for node in NODES:
        findings += await _spanning_tree(name, nic.tap, hosts[node], node)
        try:
            await taps.require_usable(replace(spec, nics=(nic,)), hosts[node], node)
        except ColoctlError as error:
            findings.append(Precondition(name, Severity.ERROR, error.message, error.hint or ""))
            continue
        if nic.tap.made:
            sentence = f"A tap can be made on bridge {nic.tap.bridge} of node {node}."
            findings.append(Precondition(name, Severity.OK, sentence))
            continue
        sentence = f"Tap {nic.tap.ifname[node]} on node {node} can be opened."
        findings.append(Precondition(name, Severity.OK, sentence))
        findings += await _bridge(name, nic.tap, hosts[node], node)
    if any(one.severity is Severity.ERROR for one in findings):
        return findings
    header = "carry a virtio-net header" if has_vnet_header(nic) else "are plain Ethernet"
    sentence = f"Frames {header} on both nodes, and the filters know it; vhost is off."
    return [*findings, Precondition(name, Severity.OK, sentence)]


async def _spanning_tree(name: str, tap: TapSpec, host: Host, node: NodeName) -> list[Precondition]:
    """Warn of a bridge on which a survivor's frames would be dropped for a while."""
    bridge = (await bridgeport.link(host, tap.ifname[node])).get("master") or tap.bridge
    silent_s = bridgeport.silent_s(await bridgeport.link(host, str(bridge))) if bridge else 0.0
    if not silent_s:
        return []
    sentence = (
        f"Bridge {bridge} on node {node} runs STP: after a failover its port drops every frame of "
        f"the guest for {silent_s:g} s."
    )
    hint = (
        f"`ip link set {bridge} type bridge stp_state 0`, where the bridge cannot be part of a loop"
    )
    return [Precondition(name, Severity.WARNING, sentence, hint)]


async def _bridge(name: str, tap: TapSpec, host: Host, node: NodeName) -> list[Precondition]:
    """Check whether the tap is a port of the bridge that the pair file names."""
    if tap.bridge is None:
        return []
    try:
        bridge = await _link_of(host, tap.bridge)
        port = await _link_of(host, tap.ifname[node])
    except PreconditionFailed as error:
        return [Precondition(name, Severity.INFO, f"The bridge was not looked at: {error.message}")]
    if bridge is None:
        sentence = f"There is no bridge {tap.bridge} on node {node}."
        hint = f"`ip link add {tap.bridge} type bridge`, or correct tap.bridge"
        return [Precondition(name, Severity.ERROR, sentence, hint)]
    if port is None or port.get("master") != tap.bridge:
        sentence = f"Tap {tap.ifname[node]} on node {node} is not a port of {tap.bridge}."
        hint = f"`ip link set {tap.ifname[node]} master {tap.bridge}`"
        return [Precondition(name, Severity.WARNING, sentence, hint)]
    return [Precondition(name, Severity.OK, f"It is a port of bridge {tap.bridge} on node {node}.")]


async def _link_of(host: Host, ifname: str) -> Mapping[str, object] | None:
    done = await host.run(
        ["ip", "-j", "link", "show", "dev", ifname], deadline_s=COMMAND_DEADLINE_S
    )
    if done.code != 0:
        return None
    try:
        listed = json.loads(done.stdout)
    except ValueError:
        return None
    return listed[0] if listed else None

"""Define the lab of machines: three machines, their networks, a client and two switches; pure.

Called by `lab.machine`, `lab.machine_store`, `lab.machines` and `cli.verbs.lab_machines`; its plan
is a `lab.layout` value like that of the lab of namespaces, and the guest's LAN is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from coloctl.lab import layout
from coloctl.lab.layout import End, Layout, Wire

#: The lab of machines that is meant when none is named.
DEFAULT = "machines"
#: The machines: two run QEMU, the third runs the supervisor and sees neither guest LAN nor disks.
NAMES = ("hv1", "hv2", "witness")
#: The namespace that holds the wires of machines that are off. Nothing is configured in it.
DARK = "dark"
#: On the management network, where ssh is answered.
ADDRESSES: Mapping[str, str] = {"hv1": "10.68.0.11", "hv2": "10.68.0.12", "witness": "10.68.0.13"}


#: Seconds by which each machine's monotonic clock is ahead, where that is asked for.
AHEAD_S: Mapping[str, int] = {"hv1": 1_000_000, "hv2": 2_000_000, "witness": 3_000_000}


def _management(machine: str, letter: str, number: int) -> Wire:
    return Wire(
        f"management-{letter}",
        End(machine, f"mgmt-{letter}", f"02:00:0a:44:01:{number:02x}", address=ADDRESSES[machine]),
        End("office", f"port-{letter}", f"02:00:0a:44:02:{number:02x}", in_bridge=True),
    )


def _lan(machine: str, letter: str, number: int) -> Wire:
    return Wire(
        f"lan-{letter}",
        End(machine, f"lan-{letter}", f"02:00:0a:4d:01:{number:02x}", in_bridge=True),
        End("lan", f"port-{letter}", f"02:00:0a:4d:02:{number:02x}", in_bridge=True),
        strict=True,
    )


# Each device has a name of its own: all may lie in `DARK` at once.
_WIRES = (
    Wire(
        "replication",
        End("hv1", "repl-a", "02:00:0a:42:00:01", address=layout.REPLICATION_A),
        End("hv2", "repl-b", "02:00:0a:42:00:02", address=layout.REPLICATION_B),
    ),
    _lan("hv1", "a", 1),
    _lan("hv2", "b", 2),
    layout.WIRES["client"],
    _management("hv1", "a", 1),
    _management("hv2", "b", 2),
    _management("witness", "w", 3),
)

MACHINES = Layout(
    kind="machines",
    roles=(*NAMES, "client", "lan", "office", DARK),
    hosts=("hv1", "hv2"),
    wires={wire.name: wire for wire in _WIRES},
    bridge_macs={
        "hv1": "02:00:0a:4d:03:01",
        "hv2": "02:00:0a:4d:03:02",
        "lan": "02:00:0a:4d:03:03",
        "office": "02:00:0a:44:03:01",
    },
    networks={
        "replication": ("replication",),
        "guest": ("lan-a", "lan-b"),
        "management": ("management-a", "management-b", "management-w"),
    },
)


def addresses_of(machine: str) -> list[str]:
    """Return the addresses of the machine for replication; none for the third."""
    return [
        end.address
        for wire, end in ends_of(machine)
        if end.address is not None and wire.name == "replication"
    ]


def ends_of(machine: str) -> list[tuple[Wire, End]]:
    """Return the wires that end in that machine, each with its end there."""
    return [
        (wire, end) for wire in MACHINES.wires.values() for end in wire.ends if end.role == machine
    ]

"""Define the lab's namespaces, devices, addresses and wires, and draw them; pure.

Called by `lab.network` and `lab.devices`; the clients of `chaos.workloads` take addresses here.

A `Layout` holds all that may differ from one kind of lab to another; `TWO_HOSTS` is the lab of
namespaces alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from coloctl.errors import LabError, UsageError

#: The lab that is meant when none is named; its namespaces carry the plain role names.
DEFAULT = "lab"
#: Two hosts that run QEMU, a machine that talks to the guest, and the switch between them.
ROLES = ("host-a", "host-b", "client", "lan")
BRIDGE = "br0"
#: One tap per host, a port of that host's bridge.
TAPS: Mapping[str, str] = {"host-a": "tap-a", "host-b": "tap-b"}
#: One more per host, for a guest with two cards: on the same LAN, and in another network on it.
SECOND_TAPS: Mapping[str, str] = {"host-a": "tap-a2", "host-b": "tap-b2"}
REPLICATION_A = "10.66.0.1"
REPLICATION_B = "10.66.0.2"
CLIENT = "10.77.0.2"
GUEST = "10.77.0.10"
SECOND_CLIENT = "10.78.0.2"
PREFIX_LENGTH = 24
MTU = 1500

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a wire: a device in the namespace of ``role``, with an address or in a bridge."""

    role: str
    device: str
    mac: str
    address: str | None = None
    in_bridge: bool = False


@dataclass(frozen=True, slots=True)
class Wire:
    """Two ends of a veth pair; on a ``strict`` one every frame carries a checked checksum."""

    name: str
    a: End
    b: End
    strict: bool = False

    @property
    def ends(self) -> tuple[End, End]:
        """Both ends, the one drawn further left or further up first."""
        return self.a, self.b


# The replication wire keeps its offloads: only QEMU's own TCP runs there, and it costs less CPU.
# The guest's LAN is strict on every hop, because one veth that claims to have checked a checksum
# hides a wrong one from the client.
WIRES: Mapping[str, Wire] = {
    wire.name: wire
    for wire in (
        Wire(
            "replication",
            End("host-a", "replication", "02:00:0a:42:00:01", address=REPLICATION_A),
            End("host-b", "replication", "02:00:0a:42:00:02", address=REPLICATION_B),
        ),
        Wire(
            "lan-a",
            End("host-a", "lan-a", "02:00:0a:4d:01:01", in_bridge=True),
            End("lan", "port-a", "02:00:0a:4d:02:01", in_bridge=True),
            strict=True,
        ),
        Wire(
            "lan-b",
            End("host-b", "lan-b", "02:00:0a:4d:01:02", in_bridge=True),
            End("lan", "port-b", "02:00:0a:4d:02:02", in_bridge=True),
            strict=True,
        ),
        Wire(
            "client",
            End("lan", "port-client", "02:00:0a:4d:02:03", in_bridge=True),
            End("client", "lan0", "02:00:0a:4d:00:02", address=CLIENT),
            strict=True,
        ),
    )
}

#: Bridges get a fixed address: by default a bridge takes its lowest port's, and taps change that.
BRIDGE_MACS: Mapping[str, str] = {
    "host-a": "02:00:0a:4d:03:01",
    "host-b": "02:00:0a:4d:03:02",
    "lan": "02:00:0a:4d:03:03",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of lab: its namespaces, and the devices in and between them."""

    kind: str  #: a part of the mark on the loopback device of each namespace
    roles: tuple[str, ...]
    hosts: tuple[str, str]  #: the roles in which nodes a and b run
    wires: Mapping[str, Wire]
    bridge_macs: Mapping[str, str]  #: of each role that has a bridge
    taps: tuple[Mapping[str, str], ...] = ()  #: by role, ports of its bridge
    networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: wires cut together

    def namespace(self, lab: str, role: str) -> str:
        """Return the name of the namespace for ``role`` in ``lab``; `LabError` for no role."""
        if role not in self.roles:
            raise LabError(
                f"The lab has no machine called {role!r}.", hint=f"it has {', '.join(self.roles)}"
            )
        return role if lab == DEFAULT else f"{lab}-{role}"

    def wire(self, which: str) -> Wire:
        """Return the wire of that name; raises `LabError` when there is none."""
        if which not in self.wires:
            raise LabError(
                f"The lab has no link called {which!r}.", hint=f"it has {', '.join(self.wires)}"
            )
        return self.wires[which]


TWO_HOSTS = Layout(
    kind="lab",
    roles=ROLES,
    hosts=("host-a", "host-b"),
    wires=WIRES,
    bridge_macs=BRIDGE_MACS,
    taps=(TAPS, SECOND_TAPS),
)


def check_name(lab: str) -> str:
    """Check that ``lab`` can name a lab, and return it; raises `UsageError` otherwise.

    The name becomes a part of namespace and file names.
    """
    if not _NAME.fullmatch(lab):
        raise UsageError(
            f"{lab!r} cannot be the name of a lab.",
            hint="1 to 32 lower-case letters, digits and dashes, no dash at either end",
        )
    return lab


def namespace(lab: str, role: str) -> str:
    """Return the name of the namespace for ``role`` in ``lab``; raises `LabError` for no role."""
    return TWO_HOSTS.namespace(lab, role)


_STROKE = {"up": "─", "cut": "╳", "unplugged": " "}
_WIDTH = 63


def draw(lab: str, states: Mapping[str, str]) -> str:
    """Draw the lab for people.

    ``states`` maps each link to up, cut, unplugged or mixed. A link that is cut is drawn with
    crosses, an unplugged one with blanks, a mixed one dashed.
    """
    stroke = {name: _STROKE.get(states.get(name, "up"), "╌") for name in WIRES}
    down = "│" if stroke["client"] == "─" else stroke["client"]
    names = {role: namespace(lab, role) for role in ROLES}
    wide = stroke["replication"] * 14
    left, right = stroke["lan-a"] * 6, stroke["lan-b"] * 6
    lines = (
        _spread(names["host-a"], names["host-b"]),
        f"  {REPLICATION_A} {wide} replication {wide} {REPLICATION_B}",
        _spread(" tap-a", "tap-b"),
        _spread("   │", "│ "),
        f"    br0 ─ lan-a {left} port-a ─ br0 ─ port-b {right} lan-b ─ br0",
        f"{down:>34}  {names['lan']}",
        f"{'lan0':>35}  {names['client']}, {CLIENT}",
        "",
        f"  The guest answers at {GUEST}.",
    )
    impaired = [f"  {name} is {state}." for name, state in states.items() if state != "up"]
    return "\n".join((*lines, *impaired))


def _spread(left: str, right: str) -> str:
    return f"  {left}{right:>{_WIDTH - 2 - len(left)}}"

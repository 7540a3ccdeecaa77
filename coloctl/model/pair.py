"""Describe one pair as its operator asked for it; frozen values.

Used by every layer. `pairfile/` makes a `PairSpec` from a pair file, and takes the keys, defaults
and bounds of the file's tables from these classes (`pairfile.keys`). A field's docstring is what
editors show for its key, a class's for its table.

Invariant: a key, its default and its bounds stand here and nowhere else, and so do the ports that
follow from ``base_port``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from coloctl.model.bounds import RATE_MAX, Between
from coloctl.model.tls import TlsMode, TlsSpec

NodeName = Literal["a", "b"]
NODES: tuple[NodeName, NodeName] = ("a", "b")


def other(node: NodeName) -> NodeName:
    """Return the node at the other end of the pair."""
    return "b" if node == "a" else "a"


class Role(StrEnum):
    """Part that a node has in the pair right now."""

    PRIMARY = "primary"  #: its output reaches the clients
    SECONDARY = "secondary"  #: follows, and takes over
    NONE = "none"  #: no QEMU of this pair there


class MigrationTransport(StrEnum):
    """Transport of the migration stream."""

    FD = "fd"  #: sockets opened by coloctl with TCP_NODELAY; unix where both share a host
    TCP = "tcp"  #: QEMU's own tcp:, kept for comparison


class CheckpointMode(StrEnum):
    """Source of the time between two checkpoints."""

    FIXED = "fixed"  #: it is ``delay_ms``
    ADAPTIVE = "adaptive"  #: the pair itself, by what its checkpoints show (`colo.pace`)


class FencingMethod(StrEnum):
    KILL = "kill"
    MANUAL = "manual"
    COMMAND = "command"


@dataclass(frozen=True)
class GuestSpec:
    """The virtual machine, the same on both nodes."""

    memory_mib: int
    """Guest memory, with a unit: 512MiB, 2 GiB. A number without quotes counts bytes."""
    cpus: Annotated[int, Between(1, 255)] = 1
    """Virtual CPUs."""
    machine: str = "pc"
    """QEMU's machine type: pc, q35 (from QEMU 11.0), or a version of them."""
    accel: str = "auto"
    """auto takes kvm where it really runs code at hardware speed, and tcg otherwise."""
    cpu: str | None = None
    """CPU model as for QEMU's -cpu."""
    kernel: Path | None = None
    """Linux kernel to boot; without it the guest boots from its first disk."""
    initrd: Path | None = None
    """Initial ramdisk for the kernel."""
    append: str = ""
    ready_line: str = ""
    """Text on the serial console which says that the guest has booted; with it a guest under tcg
    boots alone and is protected then."""
    agent: bool = False
    """The guest gets a port for qemu-guest-agent, and stop asks that to shut it down."""
    extra_args: tuple[str, ...] = ()
    """More QEMU arguments, one item per word; those that coloctl sets itself are refused."""
    qemu: Path | None = None
    """The QEMU binary: a path, or a name that is looked up on PATH (qemu-system-x86_64)."""
    user: str = "auto"
    """The user as which QEMU runs: auto takes coloctl-qemu where coloctl is root, and without that
    account coloctl's own user on this machine; a name or number; root is coloctl's own user."""
    memory_max_mib: int | None = None
    """The most memory of each QEMU, where systemd runs: twice memory and 256MiB at least."""


@dataclass(frozen=True)
class DiskSpec:
    """A disk that is replicated from the primary to the secondary."""

    id: str
    """Name of the disk, unique in the pair."""
    image: Mapping[NodeName, Path]
    format: str = "qcow2"
    """Format of both images."""
    model: str = "virtio-blk-pci"
    """QEMU's device for the disk."""


@dataclass(frozen=True)
class TapSpec:
    """The taps of one NIC, one per node, and the bridge they belong to (the same name on both)."""

    ifname: Mapping[NodeName, str]
    bridge: str | None = None
    made: bool = False  #: coloctl makes them before a QEMU and removes them after it


@dataclass(frozen=True)
class NicSpec:
    """A network card whose packets are compared before clients see them."""

    id: str
    """Name of the network card, unique in the pair."""
    mac: str
    """Its MAC address, unique in the pair."""
    tap: TapSpec | None  #: None: a link that leads nowhere, for firmware-only pairs
    model: str = "virtio-net-pci"
    """QEMU's device for the network card."""


@dataclass(frozen=True)
class NodeSpec:
    """One of the two places where a QEMU of the pair runs."""

    name: NodeName
    host: str
    """local, netns:NAME for a network namespace of this machine, or ssh://[user@]name[:port]."""
    address: str
    """IP address at which replication traffic for this node arrives."""
    qemu: Path | None = None
    """The QEMU binary of this node, where guest.qemu is another one or at another path there."""
    kernel: Path | None = None
    """The kernel as it lies on this node's machine, where guest.kernel is another path."""
    initrd: Path | None = None
    """The initial ramdisk on this node's machine, where guest.initrd is another path."""
    overlay_dir: Path | None = None  #: for devices, where another machine has its own; in no file

    @property
    def machine(self) -> str:
        """The machine as the host names it; "" is the one on which coloctl runs.

        Two nodes with one name see the same files. The comparison is by text: two addresses of one
        machine have two names.
        """
        return self.host if self.host.startswith("ssh://") else ""


@dataclass(frozen=True)
class ReplicationSpec:
    """The traffic between the two nodes."""

    base_port: Annotated[int, Between(1024, 65436)] = 9000
    """First of the hundred TCP ports that the pair may use on each node."""
    channel: MigrationTransport = MigrationTransport.FD
    """How checkpoints travel: fd over sockets without Nagle's delay, tcp over QEMU's own."""
    multifd_channels: Annotated[int, Between(0, 16)] = 0
    """Further channels for guest memory (QEMU 11.0 and newer); 0 uses the plain stream."""
    overlay_dir: Path | None = None
    """Folder, on both nodes, for what a secondary writes between two checkpoints; without it that
    lies beside each image."""

    @property
    def stream(self) -> MigrationTransport:
        """Transport of the stream: with multifd QEMU insists on opening every connection itself.

        ``fd:`` is refused then: "Migration requires multi-channel URIs (e.g. tcp)" (11.1.3). The
        multifd connections have TCP_NODELAY; the main one, with COLO's small messages, does not
        have it.
        """
        return MigrationTransport.TCP if self.multifd_channels else self.channel

    def nbd_port(self) -> int:
        """Return the TCP port at which the secondary serves its disks."""
        return self.base_port + 99

    def migration_port(self) -> int:
        """Return the TCP port at which the secondary takes in the guest's memory."""
        return self.base_port + 98

    def heartbeat_port(self) -> int:
        """Return the UDP port of the heartbeat, on both nodes."""
        return self.base_port + 97

    def mirror_port(self, nic: int) -> int:
        """Return the port of ``mirror0``: 9003 in QEMU's COLO document; ten further per NIC."""
        return self.base_port + 10 * nic + 3

    def compare_port(self, nic: int) -> int:
        """Return the port of ``compare1``: 9004 in QEMU's COLO document; ten further per NIC."""
        return self.base_port + 10 * nic + 4


@dataclass(frozen=True)
class CheckpointSpec:
    """The time between checkpoints, and how long packets wait to be compared."""

    delay_ms: Annotated[int, Between(1, 600_000)] = 1000
    """Longest time between two checkpoints."""
    compare_timeout_ms: Annotated[int, Between(1, 60_000)] = 300
    """How long a packet of the primary waits for the secondary's before a checkpoint."""
    expired_scan_cycle_ms: Annotated[int, Between(1, 60_000)] = 100
    """How often waiting packets are looked through."""
    max_queue_size: Annotated[int, Between(1, 1_000_000)] = 1024
    """Packets that may wait per connection; further ones are dropped."""
    mode: CheckpointMode = CheckpointMode.FIXED
    """fixed: delay_ms holds; adaptive: the pair chooses the delay by what its checkpoints show,
    beginning with delay_ms."""
    min_delay_ms: Annotated[int, Between(1, 600_000)] = 100
    """Shortest delay that adaptive mode chooses."""
    max_delay_ms: Annotated[int, Between(1, 600_000)] = 10_000
    """Longest delay that adaptive mode chooses."""
    pause_share: Annotated[float, Between(0.001, 1)] = 0.05
    """Share of the time that the guest may stand still for checkpoints, in adaptive mode."""
    held_ms: Annotated[int, Between(1, 60_000)] = 200
    """How long a checkpoint, or the wait for one, may hold an answer, in adaptive mode."""
    guard_first_connection: bool = True
    """Take a checkpoint as soon as the first TCP connection after entry into COLO is seen."""


@dataclass(frozen=True)
class DetectionSpec:
    """The silence after which a node counts as lost."""

    heartbeat_ms: Annotated[int, Between(1, 60_000)] = 20
    """Time between two heartbeats."""
    suspect_after_ms: Annotated[int, Between(2, 600_000)] = 120
    """Silence after which a node is suspected."""


@dataclass(frozen=True)
class FencingSpec:
    """The way to make sure that a lost node is down."""

    method: FencingMethod = FencingMethod.KILL
    """kill ends its QEMU, command runs a fence agent, manual waits for an operator."""
    command: tuple[str, ...] = ()
    """The fence agent and its arguments, for method command."""
    timeout_s: Annotated[int, Between(1, 3600)] = 60
    """How long the agent may take to switch a node off and to confirm that."""
    #: Options that the agent gets for each node, as its metadata name them (``plug``, ``ip``, ...).
    options: Mapping[NodeName, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArbiterSpec:
    """The arbiter, which decides which node may be promoted."""

    kind: str = "file"
    """file keeps the decision in a file."""
    path: Path | None = None
    """That file, where every supervisor of the pair can lock it; else it is in the pair's own
    folder."""


class OnPanic(StrEnum):
    """Reaction to a panic of the guest's kernel, which happens on both nodes."""

    REPORT = "report"  #: it is reported, and the guest left as it is
    RESTART = "restart"  #: the guest is reset, unless it resets itself
    STOP = "stop"  #: the pair ends


@dataclass(frozen=True)
class Policy:
    """The actions that happen without an operator."""

    auto_failover: bool = True
    """Promote the survivor when a node is lost."""
    auto_reprotect: bool = True
    """Build a new secondary after a failover."""
    mirror_rate: Annotated[int, Between(0, RATE_MAX)] = 0
    """How fast disks are copied to a new secondary, bytes per second with a unit: 50MiB; 0 is
    unlimited."""
    on_panic: OnPanic = OnPanic.REPORT
    """When the guest's kernel panics: report it, reset the guest, or end the pair."""


class OnDifference(StrEnum):
    """Reaction to a secondary's disk that is found to hold other bytes than the primary's."""

    REPORT = "report"  #: it is reported; which of the two is right, a person finds out
    RESYNC = "resync"  #: the primary's is right: a fresh secondary is made from it


@dataclass(frozen=True)
class VerifySpec:
    """The comparison of both nodes' disks and memory: when it is made, and what follows."""

    every_s: float = 0.0
    """How often they are compared while the pair is in COLO: 12h, 1d, 1w; 0 is never."""
    rate: Annotated[int, Between(0, RATE_MAX)] = 0
    """How fast they are read for that on each node, bytes per second with a unit: 50MiB; 0 is
    unlimited."""
    on_difference: OnDifference = OnDifference.REPORT
    """When disks differ: report it, or make a fresh secondary from the primary's disks."""
    memory: bool = False
    """Whether the guest's memory is compared besides the disks; a difference is reported."""


@dataclass(frozen=True)
class PairSpec:
    """One pair, as asked for."""

    name: str
    guest: GuestSpec
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    nodes: Mapping[NodeName, NodeSpec]
    replication: ReplicationSpec = field(default_factory=ReplicationSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    detection: DetectionSpec = field(default_factory=DetectionSpec)
    fencing: FencingSpec = field(default_factory=FencingSpec)
    arbiter: ArbiterSpec = field(default_factory=ArbiterSpec)
    policy: Policy = field(default_factory=Policy)
    verify: VerifySpec = field(default_factory=VerifySpec)
    tls: TlsSpec = field(default_factory=TlsSpec)
    source: Path | None = None  #: the file it was read from

    def shares_host(self) -> bool:
        """Return whether both QEMUs run in the same namespace of the same host."""
        return self.nodes["a"].host == self.nodes["b"].host

    def shares_machine(self) -> bool:
        """Return whether both nodes see the same files, as far as their names show."""
        return self.nodes["a"].machine == self.nodes["b"].machine

    def guest_on(self, node: NodeName) -> GuestSpec:
        """Return the guest as ``node`` starts it: with the paths of that node's own machine."""
        own, guest = self.nodes[node], self.guest
        return replace(
            guest,
            qemu=own.qemu or guest.qemu,
            kernel=own.kernel or guest.kernel,
            initrd=own.initrd or guest.initrd,
        )

    def encrypted(self) -> bool:
        """Return whether every wire between the nodes is encrypted; on one host there is none."""
        if self.tls.mode is TlsMode.AUTO:
            return any(node.machine for node in self.nodes.values()) and not self.shares_host()
        return self.tls.mode is TlsMode.ON

"""Describe one pair as its operator asked for it; frozen values.

Used by every layer. `pairfile/` makes a `PairSpec` from a pair file; ports that follow from
``base_port`` are computed here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

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
    memory_mib: int
    cpus: int = 1
    machine: str = "pc"
    accel: str = "auto"
    cpu: str | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    ready_line: str = ""  #: text on the serial console which says that the guest has booted
    agent: bool = False  #: the guest has a port for its QEMU guest agent
    extra_args: tuple[str, ...] = ()
    qemu: Path | None = None  #: the binary; None means qemu-system-x86_64 on PATH


@dataclass(frozen=True)
class DiskSpec:
    id: str
    image: Mapping[NodeName, Path]
    format: str = "qcow2"
    model: str = "virtio-blk-pci"
    devices: frozenset[Path] = frozenset()  #: images that were found to be block devices


@dataclass(frozen=True)
class TapSpec:
    """The taps of one NIC, one per node, and the bridge they belong to (the same name on both)."""

    ifname: Mapping[NodeName, str]
    bridge: str | None = None


@dataclass(frozen=True)
class NicSpec:
    id: str
    mac: str
    tap: TapSpec | None  #: None: a link that leads nowhere, for firmware-only pairs
    model: str = "virtio-net-pci"


@dataclass(frozen=True)
class NodeSpec:
    name: NodeName
    host: str  #: "local" or "netns:NAME"
    address: str  #: where replication traffic for this node arrives


@dataclass(frozen=True)
class ReplicationSpec:
    base_port: int = 9000
    channel: MigrationTransport = MigrationTransport.FD
    multifd_channels: int = 0  #: 0: the plain stream
    #: Where a secondary's overlays lie on both nodes; None: beside each image.
    overlay_dir: Path | None = None

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
    delay_ms: int = 1000
    compare_timeout_ms: int = 300
    expired_scan_cycle_ms: int = 100
    max_queue_size: int = 1024
    mode: CheckpointMode = CheckpointMode.FIXED
    min_delay_ms: int = 100  #: this and the next three bound what adaptive mode may choose
    max_delay_ms: int = 10_000
    pause_share: float = 0.05  #: of the time, that the guest may stand still for checkpoints
    held_ms: int = 200  #: how long a checkpoint, or the wait for one, may hold an answer
    guard_first_connection: bool = True  #: checkpoint when a guest's first TCP connection is seen


@dataclass(frozen=True)
class DetectionSpec:
    heartbeat_ms: int = 20
    suspect_after_ms: int = 120


@dataclass(frozen=True)
class FencingSpec:
    method: FencingMethod = FencingMethod.KILL
    command: tuple[str, ...] = ()
    timeout_s: int = 60  #: for the whole conversation with the agent
    #: Options that the agent gets for each node, as its metadata name them (``plug``, ``ip``, ...).
    options: Mapping[NodeName, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArbiterSpec:
    kind: str = "file"
    path: Path | None = None  #: None: in the pair's own folder


class OnPanic(StrEnum):
    """Reaction to a panic of the guest's kernel, which happens on both nodes."""

    REPORT = "report"  #: it is reported, and the guest left as it is
    RESTART = "restart"  #: the guest is reset, unless it resets itself
    STOP = "stop"  #: the pair ends


@dataclass(frozen=True)
class Policy:
    auto_failover: bool = True
    auto_reprotect: bool = True
    mirror_rate: int = 0  #: of a disk that is copied to a secondary, bytes per second; 0: no limit
    on_panic: OnPanic = OnPanic.REPORT


class OnDifference(StrEnum):
    """Reaction to a secondary's disk that is found to hold other bytes than the primary's."""

    REPORT = "report"  #: it is reported; which of the two is right, a person finds out
    RESYNC = "resync"  #: the primary's is right: a fresh secondary is made from it


@dataclass(frozen=True)
class VerifySpec:
    every_s: float = 0.0  #: how often both copies are compared by themselves; 0: never
    rate: int = 0  #: bytes per second that are read on each node; 0: no limit
    on_difference: OnDifference = OnDifference.REPORT
    memory: bool = False  #: compare the guest's memory too


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
    source: Path | None = None  #: the file it was read from

    def shares_host(self) -> bool:
        """Return whether both QEMUs run in the same namespace of the same host."""
        return self.nodes["a"].host == self.nodes["b"].host

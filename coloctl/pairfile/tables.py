"""Define the tables and keys of a pair file as written.

Called by `pairfile` to read a file and by `pairfile.complaints` to name the keys of a table. A
field's docstring is what editors show for the key.

Invariant: this module looks at no machine and compares no table with another; `pairfile.checks`
does that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from coloctl.model.bounds import RATE_MAX
from coloctl.model.units import MIB, UNITS
from coloctl.pairfile import values
from coloctl.pairfile.qemuargs import check_extra_args

_PATH = Annotated[str, AfterValidator(values.path)]
_IFNAME = Annotated[str, AfterValidator(values.ifname)]
_ID = Annotated[str, AfterValidator(values.qemu_id)]
_WORD = {"type": ["string", "integer", "boolean"]}
_OPTIONS = Annotated[
    dict[str, Annotated[str, BeforeValidator(values.agent_value), WithJsonSchema(_WORD)]],
    AfterValidator(values.agent_options),
]
_MEMORY = {
    "type": ["string", "integer"],
    "pattern": f"^[0-9]+\\s*({'|'.join(UNITS)})$",
    "minimum": MIB,
    "examples": ["512MiB", "2 GiB"],
}
_PERIOD = {
    "anyOf": [{"type": "string", "pattern": "^[0-9]{1,9} *[smhdw]$"}, {"const": 0}],
}
_RATE = {
    "type": ["string", "integer"],
    "pattern": f"^[0-9]+\\s*({'|'.join(UNITS)})$",
    "minimum": 0,
    "maximum": RATE_MAX,
    "examples": ["50MiB"],
}


class Table(BaseModel):
    """A TOML table: exact types, no key that is not listed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class GuestTable(Table):
    """The virtual machine, the same on both nodes."""

    memory: Annotated[int, BeforeValidator(values.memory_mib), WithJsonSchema(_MEMORY)]
    """Guest memory, with a unit: 512MiB, 2 GiB. A number without quotes counts bytes."""
    cpus: int = Field(1, ge=1, le=255)
    """Virtual CPUs."""
    machine: Annotated[str, AfterValidator(values.machine)] = "pc"
    """QEMU's machine type: pc, q35 (from QEMU 11.0), or a version of them."""
    accel: Literal["auto", "kvm", "tcg", "qtest"] = "auto"
    """auto takes kvm where it really runs code at hardware speed, and tcg otherwise."""
    cpu: Annotated[str, AfterValidator(values.cpu)] | None = None
    """CPU model as for QEMU's -cpu."""
    kernel: _PATH | None = None
    """Linux kernel to boot; without it the guest boots from its first disk."""
    initrd: _PATH | None = None
    """Initial ramdisk for the kernel."""
    append: str | None = None
    """Kernel command line."""
    ready_line: str = ""
    """Text on the serial console which says that the guest has booted; with it a guest under tcg
    boots alone and is protected then."""
    agent: bool = False
    """The guest gets a port for qemu-guest-agent, and stop asks that to shut it down."""
    extra_args: Annotated[list[str], AfterValidator(check_extra_args)] = []
    """More QEMU arguments, one item per word; those that coloctl sets itself are refused."""
    qemu: _PATH | None = None
    """The QEMU binary: a path, or a name that is looked up on PATH (qemu-system-x86_64)."""


class ImageTable(Table):
    """The image of one disk on each node: equal content and size when the pair starts."""

    a: _PATH
    """Image on node a; a relative path begins at the pair file's folder."""
    b: _PATH
    """Image on node b; a relative path begins at the pair file's folder."""


class DiskTable(Table):
    """A disk that is replicated from the primary to the secondary."""

    id: _ID
    """Name of the disk, unique in the pair."""
    image: ImageTable
    format: Literal["qcow2", "raw"] = "qcow2"
    """Format of both images."""
    model: Annotated[str, AfterValidator(values.device)] = "virtio-blk-pci"
    """QEMU's device for the disk."""


class TapTable(Table):
    """The tap of one network card on each node."""

    a: _IFNAME
    """Tap on node a; it exists before the pair starts."""
    b: _IFNAME
    """Tap on node b; it exists before the pair starts."""
    bridge: _IFNAME | None = None
    """The bridge which both taps belong to, each in its own host."""


class NicTable(Table):
    """A network card whose packets are compared before clients see them."""

    id: _ID
    """Name of the network card, unique in the pair."""
    mac: Annotated[str, AfterValidator(values.mac)]
    """Its MAC address, unique in the pair."""
    model: Annotated[str, AfterValidator(values.device)] = "virtio-net-pci"
    """QEMU's device for the network card."""
    tap: TapTable


class NodeTable(Table):
    """One of the two places where a QEMU of the pair runs."""

    host: Annotated[str, AfterValidator(values.host)] = "local"
    """local, or netns:NAME for a network namespace of this machine."""
    address: Annotated[str, AfterValidator(values.address)]
    """IP address at which replication traffic for this node arrives."""


class NodesTable(Table):
    """Both nodes of the pair."""

    a: NodeTable
    b: NodeTable


class ReplicationTable(Table):
    """The traffic between the two nodes."""

    base_port: int = Field(9000, ge=1024, le=65436)
    """First of the hundred TCP ports that the pair may use on each node."""
    channel: Literal["fd", "tcp"] = "fd"
    """How checkpoints travel: fd over sockets without Nagle's delay, tcp over QEMU's own."""
    multifd_channels: int = Field(0, ge=0, le=16)
    """Further channels for guest memory (QEMU 11.0 and newer); 0 uses the plain stream."""
    overlay_dir: _PATH | None = None
    """Folder, on both nodes, for what a secondary writes between two checkpoints; without it that
    lies beside each image."""


class CheckpointTable(Table):
    """The time between checkpoints, and how long packets wait to be compared."""

    delay_ms: int = Field(1000, ge=1, le=600_000)
    """Longest time between two checkpoints."""
    compare_timeout_ms: int = Field(300, ge=1, le=60_000)
    """How long a packet of the primary waits for the secondary's before a checkpoint."""
    expired_scan_cycle_ms: int = Field(100, ge=1, le=60_000)
    """How often waiting packets are looked through."""
    max_queue_size: int = Field(1024, ge=1, le=1_000_000)
    """Packets that may wait per connection; further ones are dropped."""
    mode: Literal["fixed", "adaptive"] = "fixed"
    """fixed: delay_ms holds; adaptive: the pair chooses the delay by what its checkpoints show,
    beginning with delay_ms."""
    min_delay_ms: int = Field(100, ge=1, le=600_000)
    """Shortest delay that adaptive mode chooses."""
    max_delay_ms: int = Field(10_000, ge=1, le=600_000)
    """Longest delay that adaptive mode chooses."""
    pause_share: float = Field(0.05, ge=0.001, le=1)
    """Share of the time that the guest may stand still for checkpoints, in adaptive mode."""
    held_ms: int = Field(200, ge=1, le=60_000)
    """How long a checkpoint, or the wait for one, may hold an answer, in adaptive mode."""
    guard_first_connection: bool = True
    """Take a checkpoint as soon as the first TCP connection after entry into COLO is seen."""


class DetectionTable(Table):
    """The silence after which a node counts as lost."""

    heartbeat_ms: int = Field(20, ge=1, le=60_000)
    """Time between two heartbeats."""
    suspect_after_ms: int = Field(120, ge=2, le=600_000)
    """Silence after which a node is suspected."""


class FencingTable(Table):
    """The way to make sure that a lost node is down."""

    method: Literal["kill", "manual", "command"] = "kill"
    """kill ends its QEMU, command runs a fence agent, manual waits for an operator."""
    command: list[str] = []
    """The fence agent and its arguments, for method command."""
    timeout_s: int = Field(60, ge=1, le=3600)
    """How long the agent may take to switch a node off and to confirm that."""
    options: _OPTIONS = {}
    """What the agent gets for either node: its address, user and password."""
    a: _OPTIONS = {}
    """What the agent gets when node a is lost; plug and nodename are a unless given."""
    b: _OPTIONS = {}
    """What the agent gets when node b is lost; plug and nodename are b unless given."""


class ArbiterTable(Table):
    """The arbiter, which decides which node may be promoted."""

    kind: Literal["file"] = "file"
    """file keeps the decision in a file."""
    path: _PATH | None = None
    """That file, where every supervisor of the pair can lock it; else it is in the pair's own
    folder."""


class PolicyTable(Table):
    """The actions that happen without an operator."""

    auto_failover: bool = True
    """Promote the survivor when a node is lost."""
    auto_reprotect: bool = True
    """Build a new secondary after a failover."""
    mirror_rate: Annotated[int, BeforeValidator(values.rate), WithJsonSchema(_RATE)] = 0
    """How fast disks are copied to a new secondary, bytes per second with a unit: 50MiB; 0 is
    unlimited."""
    on_panic: Literal["report", "restart", "stop"] = "report"
    """When the guest's kernel panics: report it, reset the guest, or end the pair."""


class VerifyTable(Table):
    """The comparison of both nodes' disks and memory: when it is made, and what follows."""

    every: Annotated[float, BeforeValidator(values.period), WithJsonSchema(_PERIOD)] = 0.0
    """How often they are compared while the pair is in COLO: 12h, 1d, 1w; 0 is never."""
    rate: Annotated[int, BeforeValidator(values.rate), WithJsonSchema(_RATE)] = 0
    """How fast they are read for that on each node, bytes per second with a unit: 50MiB; 0 is
    unlimited."""
    on_difference: Literal["report", "resync"] = "report"
    """When disks differ: report it, or make a fresh secondary from the primary's disks."""
    memory: bool = False
    """Whether the guest's memory is compared besides the disks; a difference is reported."""


class PairFile(Table):
    """A pair file of coloctl: one guest that runs on two nodes at once."""

    name: Annotated[str, AfterValidator(values.pair_name)]
    """Name of the pair; its state folder is called the same."""
    guest: GuestTable
    disk: list[DiskTable] = []
    nic: list[NicTable] = []
    node: NodesTable
    replication: ReplicationTable = ReplicationTable.model_validate({})
    checkpoint: CheckpointTable = CheckpointTable.model_validate({})
    detection: DetectionTable = DetectionTable.model_validate({})
    fencing: FencingTable = FencingTable.model_validate({})
    arbiter: ArbiterTable = ArbiterTable()
    policy: PolicyTable = PolicyTable()
    verify: VerifyTable = VerifyTable()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of pair files, for editors."""
    schema = PairFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

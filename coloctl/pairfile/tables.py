"""Define the tables and keys of a pair file as written.

Called by `pairfile` to read a file and by `pairfile.complaints` to name the keys of a table. Keys,
defaults, bounds and texts come from `model.pair` (`pairfile.keys`); a line here is for a key that a
file writes in another way, or that the model does not have.

Invariant: this module looks at no machine and compares no table with another; `pairfile.checks`
does that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from coloctl.model import pair
from coloctl.model.bounds import RATE_MAX
from coloctl.model.tls import TlsSpec
from coloctl.model.units import MIB, UNITS
from coloctl.pairfile import values
from coloctl.pairfile.keys import keys_of
from coloctl.pairfile.qemuargs import check_extra_args

_PATH = Annotated[str, AfterValidator(values.path)]
_PROGRAM = Annotated[str, AfterValidator(values.program)]
_IFNAME = Annotated[str, AfterValidator(values.ifname)]
_ID = Annotated[str, AfterValidator(values.qemu_id)]
_MACHINE = Annotated[str, AfterValidator(values.machine_name)]
_DEVICE = Annotated[str, AfterValidator(values.device)]
_WORDS = Annotated[tuple[str, ...], Field(strict=False)]  # a list in TOML
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
_USER = {"type": ["string", "integer"], "minimum": 0, "examples": ["auto", "coloctl-qemu"]}
_PERIOD = {
    "anyOf": [{"type": "string", "pattern": "^[0-9]{1,9} *[smhdw]$"}, {"const": 0}],
}
_RATE_WRITTEN = {
    "type": ["string", "integer"],
    "pattern": f"^[0-9]+\\s*({'|'.join(UNITS)})$",
    "minimum": 0,
    "maximum": RATE_MAX,
    "examples": ["50MiB"],
}
_RATE = Annotated[int, BeforeValidator(values.rate), WithJsonSchema(_RATE_WRITTEN)]


class Table(BaseModel):
    """A TOML table: exact types, no key that is not listed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


@keys_of(pair.GuestSpec, renamed={"memory_mib": "memory", "memory_max_mib": "memory_max"})
class GuestTable(Table):
    memory_mib: Annotated[int, BeforeValidator(values.memory_mib), WithJsonSchema(_MEMORY)]
    memory_max_mib: Annotated[
        int | None, BeforeValidator(values.memory_max_mib), WithJsonSchema(_MEMORY)
    ]
    machine: Annotated[str, AfterValidator(values.machine)]
    accel: Literal["auto", "kvm", "tcg", "qtest"]
    cpu: Annotated[str, AfterValidator(values.cpu)] | None
    append: str | None = None
    """Kernel command line."""
    extra_args: Annotated[_WORDS, AfterValidator(check_extra_args)]
    qemu: _PROGRAM | None
    user: Annotated[str, BeforeValidator(values.user), WithJsonSchema(_USER)]


class ImageTable(Table):
    """The image of one disk on each node: equal content and size when the pair starts."""

    a: _PATH
    """Image on node a; a relative path begins at the pair file's folder."""
    b: _PATH
    """Image on node b; a relative path begins at the pair file's folder."""


@keys_of(pair.DiskSpec)
class DiskTable(Table):
    id: _ID
    image: ImageTable
    format: Literal["qcow2", "raw"]
    model: _DEVICE


class TapTable(Table):
    """The tap of one network card on each node."""

    a: _IFNAME
    """Tap on node a; it exists before the pair starts."""
    b: _IFNAME
    """Tap on node b; it exists before the pair starts."""
    bridge: _IFNAME | None = None
    """The bridge which both taps belong to, each in its own host."""


@keys_of(pair.NicSpec)
class NicTable(Table):
    id: _ID
    mac: Annotated[str, AfterValidator(values.mac)]
    model: _DEVICE
    tap: TapTable | None = None
    """Taps that exist before the pair starts, in place of bridge."""
    bridge: Annotated[_IFNAME | None, AfterValidator(values.one_of_both)] = Field(
        None, validate_default=True
    )
    """The bridge, of this name in each node's host, of which the card becomes a port: coloctl makes
    the tap and removes it."""


@keys_of(pair.NodeSpec, without=("name", "overlay_dir"))
class NodeTable(Table):
    host: Annotated[str, AfterValidator(values.host)] = "local"
    """local, netns:NAME for a network namespace of this machine, or ssh://[user@]name[:port]."""
    address: Annotated[str, AfterValidator(values.address)]
    qemu: _PROGRAM | None


class NodesTable(Table):
    """Both nodes of the pair."""

    a: NodeTable
    b: NodeTable


@keys_of(pair.ReplicationSpec)
class ReplicationTable(Table): ...


@keys_of(pair.CheckpointSpec)
class CheckpointTable(Table): ...


@keys_of(pair.DetectionSpec)
class DetectionTable(Table): ...


@keys_of(pair.FencingSpec)
class FencingTable(Table):
    command: Annotated[_WORDS, AfterValidator(values.command)]
    options: _OPTIONS = {}
    """What the agent gets for either node: its address, user and password."""
    a: _OPTIONS = {}
    """What the agent gets when node a is lost; plug and nodename are a unless given."""
    b: _OPTIONS = {}
    """What the agent gets when node b is lost; plug and nodename are b unless given."""


@keys_of(pair.ArbiterSpec)
class ArbiterTable(Table):
    kind: Literal["file"]


@keys_of(pair.Policy)
class PolicyTable(Table):
    mirror_rate: _RATE


@keys_of(pair.VerifySpec, renamed={"every_s": "every"})
class VerifyTable(Table):
    every_s: Annotated[float, BeforeValidator(values.period), WithJsonSchema(_PERIOD)]
    rate: _RATE


class FoldersTable(Table):
    """Folder with the certificate of one node alone."""

    a: _PATH | None = None
    """On node a's machine."""
    b: _PATH | None = None
    """On node b's machine."""


class NamesTable(Table):
    """Name for which the certificate of a node is valid."""

    a: _MACHINE | None = None
    """Node a's, such as hv1."""
    b: _MACHINE | None = None
    """Node b's, such as hv2."""


@keys_of(TlsSpec)
class TlsTable(Table):
    folders: FoldersTable = FoldersTable()
    """That folder for one node alone."""
    names: NamesTable = NamesTable()
    """Name for which the certificate of a node is valid, where it is not that of its machine."""


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
    arbiter: ArbiterTable = ArbiterTable.model_validate({})
    policy: PolicyTable = PolicyTable.model_validate({})
    verify: VerifyTable = VerifyTable.model_validate({})
    tls: TlsTable = TlsTable.model_validate({})


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of pair files, for editors."""
    schema = PairFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

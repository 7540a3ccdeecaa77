"""Define the commands of the control socket: one class per command.

`control.schema` reads a request into its class and publishes all of them; `control.service`
and `control.server` answer them. The time that a guest gets to shut down is that of
`supervisor.acts`.

Invariant: names, types, defaults and descriptions of arguments stand here and nowhere else. A
handler gets a value of its command's class and asks for attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from coloctl.control.jsonschema import NAMED, PUBLISHED
from coloctl.model.pair import NodeName
from coloctl.model.tuning import SETTINGS
from coloctl.supervisor.acts import SHUTDOWN_DEADLINE_S


@dataclass(frozen=True, kw_only=True)
class ControlCommand:
    """One request of a client.

    Note the difference: `qmp.command.Command` is what a supervisor sends to a QEMU.
    """

    NAME: ClassVar[str]
    RETURNS: ClassVar[str]  #: what the answer holds, for the schema

    @classmethod
    def renewed(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments ``given`` by an earlier client as this version has them."""
        return given


@dataclass(frozen=True, kw_only=True)
class QueryCommands(ControlCommand):
    """List the commands that this supervisor answers."""

    NAME = "query-commands"
    RETURNS = "[{name}]"


@dataclass(frozen=True, kw_only=True)
class QuerySchema(ControlCommand):
    """Return this schema."""

    NAME = "query-schema"
    RETURNS = "the document stored as qmp_schemas/coloctl.json"


@dataclass(frozen=True, kw_only=True)
class QueryVersion(ControlCommand):
    """Return the version of the coloctl that runs the supervisor."""

    NAME = "query-version"
    RETURNS = "{qemu: {major, minor, micro}, package}, with coloctl's numbers for QEMU's"


@dataclass(frozen=True, kw_only=True)
class QueryPair(ControlCommand):
    """Return the pair as last seen."""

    NAME = "query-pair"
    RETURNS = "the document of `coloctl status -f json`"


@dataclass(frozen=True, kw_only=True)
class QueryDump(ControlCommand):
    """Return the pair, its nodes and its checkpoints as records, and where the events go on."""

    NAME = "query-dump"
    RETURNS = "{seq, records}: every event with a greater seq came after what the records show"


@dataclass(frozen=True, kw_only=True)
class QueryExplain(ControlCommand):
    """Explain the state, how silent each monitoring path is, and what would happen next."""

    NAME = "query-explain"
    RETURNS = "the document of `coloctl explain -f json`"


@dataclass(frozen=True, kw_only=True)
class QueryEvidence(ControlCommand):
    """Return the last observation of the pair, from which its diagnosis can be made again."""

    NAME = "query-evidence"
    RETURNS = "{observation, finding}; each null where nothing was observed yet"


@dataclass(frozen=True, kw_only=True)
class QueryHistory(ControlCommand):
    """List every failover of this pair, oldest first."""

    NAME = "query-history"
    RETURNS = "{failovers, unreadable}: timelines as of pair-failover, and lines that were damaged"


@dataclass(frozen=True, kw_only=True)
class QueryRecording(ControlCommand):
    """Return the last messages between the supervisor and the QEMU of a node, without secrets."""

    NAME = "query-recording"
    RETURNS = "[{at_s, what, message}], the latest last; answered probes are only counted"

    node: NodeName
    """the node"""


@dataclass(frozen=True, kw_only=True)
class QueryPlan(ControlCommand):
    """List the QMP commands that a verb would send to each node now; nothing is sent."""

    NAME = "query-plan"
    RETURNS = "the steps in order, each with node, why, and one of launch, command or act"

    verb: str
    """the verb as on the command line, such as failover"""
    to: NodeName | None = None
    """the node to promote, for failover"""
    settings: dict[str, Any] = field(default_factory=dict, metadata={PUBLISHED: {"default": {}}})
    """new values by name, for set"""
    memory: bool | None = None
    """for verify: whether memory is compared"""


@dataclass(frozen=True, kw_only=True)
class PairStart(ControlCommand):
    """Start what does not run yet and bring the pair into COLO; answer when that is done."""

    NAME = "pair-start"
    RETURNS = "the pair as in query-pair"

    protect: bool = True
    """false leaves the guest without a secondary"""
    begin_on: NodeName | None = field(default=None, metadata={NAMED: "from"})
    """the node whose disks are taken all the same"""


@dataclass(frozen=True, kw_only=True)
class PairFailover(ControlCommand):
    """Prove one node dead and promote the other."""

    NAME = "pair-failover"
    RETURNS = "the timeline of the failover"

    to: NodeName | None = None
    """the node that survives; without it the valid one"""
    force: bool = False
    """give up the checks that protect data"""


@dataclass(frozen=True, kw_only=True)
class PairProtect(ControlCommand):
    """Make a new secondary for a guest that runs alone; answer when the pair is in COLO."""

    NAME = "pair-protect"
    RETURNS = "the pair as in query-pair"


@dataclass(frozen=True, kw_only=True)
class PairUnprotect(ControlCommand):
    """End the secondary; the guest runs on alone, and the supervisor does not protect it again."""

    NAME = "pair-unprotect"
    RETURNS = "the pair as in query-pair"


@dataclass(frozen=True, kw_only=True)
class PairSwitchover(ControlCommand):
    """Exchange the roles of the nodes without loss, then protect the pair again."""

    NAME = "pair-switchover"
    RETURNS = "the timeline of the failover that it made, with cause switchover"

    force: bool = False
    """also where TCG may run stale code"""


@dataclass(frozen=True, kw_only=True)
class PairStop(ControlCommand):
    """Shut the guest down, end both QEMUs and the supervisor."""

    NAME = "pair-stop"
    RETURNS = "{how}: how the guest ended"

    force: bool = False
    """end QEMU without asking the guest"""
    timeout_s: float = SHUTDOWN_DEADLINE_S
    """how long the guest may take to shut down, seconds"""


@dataclass(frozen=True, kw_only=True)
class PairPause(ControlCommand):
    """Make the supervisor only watch: from then on only an operator fails the pair over."""

    NAME = "pair-pause"
    RETURNS = "{paused, before}"


@dataclass(frozen=True, kw_only=True)
class PairResume(ControlCommand):
    """Let the supervisor fail the pair over again, where its policy allows it."""

    NAME = "pair-resume"
    RETURNS = "{paused, before}"


@dataclass(frozen=True, kw_only=True)
class PairFenceConfirm(ControlCommand):
    """Confirm as a person that a node is off, so that its partner may be promoted."""

    NAME = "pair-fence-confirm"
    RETURNS = "the pair as in query-pair"

    node: NodeName
    """the node that is off"""


@dataclass(frozen=True, kw_only=True)
class PairSet(ControlCommand):
    """Change settings of the running pair."""

    NAME = "pair-set"
    RETURNS = "{name, before, after, changed: [{name, before, after}]}, the first one twice"

    settings: dict[str, str | int | float | bool] = field(
        metadata={PUBLISHED: {"minProperties": 1, "propertyNames": {"enum": list(SETTINGS)}}}
    )
    """the new values by name; a number, or as it is typed for `set`"""

    @classmethod
    def renewed(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the form with ``name`` and ``value``, and ``more`` by name, as settings."""
        match given:
            case {"name": str(name), "value": value, "more": dict(more), **rest} if not rest:
                return {"settings": {name: value, **more}}
            case {"name": str(name), "value": value, **rest} if not rest:
                return {"settings": {name: value}}
        return given


@dataclass(frozen=True, kw_only=True)
class PairCheckpoint(ControlCommand):
    """Take one checkpoint now; answer when it is completed."""

    NAME = "pair-checkpoint"
    RETURNS = "{count, pause_ms}"


@dataclass(frozen=True, kw_only=True)
class PairVerify(ControlCommand):
    """Compare disks and memory of both nodes while the guest runs; answer when that is over."""

    NAME = "pair-verify"
    RETURNS = (
        "{at, outcome, took_s, ended_s, primary, secondary, disks: [{disk, size, read, differs, "
        "unsettled}], reason, memory, pages: {block, pages, same, moving, different, places, "
        "left_out} or null}; outcome is equal, different or broken-off, and memory gives the "
        "reason why pages is null"
    )

    memory: bool | None = None
    """whether memory is compared; as the pair file unless given"""


@dataclass(frozen=True, kw_only=True)
class NodeQmp(ControlCommand):
    """Send one QMP command to the QEMU of a node."""

    NAME = "node-qmp"
    RETURNS = "what QEMU returned"

    node: NodeName
    """the node"""
    execute: str
    """the QMP command"""
    arguments: dict[str, Any] = field(default_factory=dict, metadata={PUBLISHED: {"default": {}}})
    """its arguments"""
    oob: bool = False
    """send it out of band, over the rescue monitor"""
    timeout_s: float = 30.0
    """how long QEMU may take, seconds"""


#: Every command by its name, in the order of the schema.
COMMANDS: Mapping[str, type[ControlCommand]] = {
    kind.NAME: kind
    for kind in (
        QueryCommands,
        QuerySchema,
        QueryVersion,
        QueryPair,
        QueryDump,
        QueryExplain,
        QueryEvidence,
        QueryHistory,
        QueryRecording,
        QueryPlan,
        PairStart,
        PairFailover,
        PairProtect,
        PairUnprotect,
        PairSwitchover,
        PairStop,
        PairPause,
        PairResume,
        PairFenceConfirm,
        PairSet,
        PairCheckpoint,
        PairVerify,
        NodeQmp,
    )
}

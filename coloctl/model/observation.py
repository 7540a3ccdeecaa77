"""Hold what all monitoring paths of a pair showed at one moment, and the limits that hold then.

`ha.heartbeat` makes an observation, and `ha.analysis` derives the finding from it. The value can be
written down and read back, so every diagnosis can be made again from its observation.

Silences are milliseconds during which the supervisor itself was awake: a supervisor that could not
run cannot know for how long others were silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Protection


class Life(StrEnum):
    """State of a QEMU process as the kernel of its host reports it."""

    ALIVE = "alive"
    STOPPED = "stopped"  #: it exists and runs nothing: SIGSTOP
    DEAD = "dead"  #: proven: its pidfd says so
    UNKNOWN = "unknown"  #: its host does not answer, or no QEMU was started there


class Diagnosis(StrEnum):
    """Name of what is wrong with a pair: one at a time, the worst that is proven."""

    HEALTHY = "healthy"
    PRIMARY_DEAD = "primary-dead"
    SECONDARY_DEAD = "secondary-dead"
    PRIMARY_FROZEN = "primary-frozen"
    SECONDARY_FROZEN = "secondary-frozen"
    SECONDARY_DIVERGED = "secondary-diverged"  #: its guest is not the primary's guest any more
    MONITOR_HUNG = "monitor-hung"  #: a main loop answers nothing although its process lives
    LINK_BROKEN = "link-broken"  #: nothing crosses the replication link
    CHECKPOINT_STALLED = "checkpoint-stalled"  #: the guest is held, or is never checkpointed
    REPLICA_WRITE_ERROR = "replica-write-error"
    LOCAL_DISK_ERROR = "local-disk-error"
    GUEST_HELD = "guest-held"  #: QEMU stopped it: a write found no room, and waits
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"
    HOST_UNREACHABLE = "host-unreachable"  #: no monitoring path reaches a node any more
    UNKNOWN = "unknown"  #: what is seen contradicts itself, or is too little


class Notice(StrEnum):
    """One of QEMU's events that decide something."""

    COLO_EXIT = "colo-exit"  #: COLO_EXIT with reason error
    REPLICA_WRITE_ERROR = "replica-write-error"  #: QUORUM_REPORT_BAD of a replica, write or flush
    #: QUORUM_REPORT_BAD of the local child, or BLOCK_IO_ERROR: write, flush
    LOCAL_WRITE_ERROR = "local-write-error"
    GUEST_HELD = "guest-held"  #: BLOCK_IO_ERROR that stopped the guest; it waits for `cont`
    LOCAL_READ_ERROR = "local-read-error"
    GUEST_SHUTDOWN = "guest-shutdown"  #: SHUTDOWN that the guest asked for
    GUEST_RESET = "guest-reset"  #: RESET, by the guest or by a command
    GUEST_PANIC = "guest-panic"  #: GUEST_PANICKED


@dataclass(frozen=True)
class NodeSeen:
    """One node, by every monitoring path that reaches it."""

    role: Role = Role.NONE
    life: Life = Life.UNKNOWN
    busy: bool = False  #: its process used CPU time while it was silent: it is not frozen
    #: Its monitor thread has not answered for so long, less what an answer from its machine takes.
    rescue_silent_ms: float = 0.0
    command_silent_ms: float = 0.0  #: its main loop has not answered for so long, counted alike
    #: The agent on its machine has reported nothing for so long; None: it needs none here.
    agent_silent_ms: float | None = None
    agent_delay_ms: float = 0.0  #: so long takes a question to its machine with the answer
    #: What its QEMU has sent since the present secondary was started. Notices about an earlier one
    #: (``colo-exit``, ``replica-write-error``) would give up the new one at once.
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Limits on the silence of each monitoring path now, milliseconds.

    The phase of the pair and what was seen raise them.
    """

    suspect_ms: float  #: an attested silence: the kernel says that the process is stopped
    silent_ms: float  #: a silence that nothing attests
    link_ms: float
    command_ms: float  #: longer than any checkpoint of this pair
    stall_ms: float  #: from STOP to RESUME
    overdue_ms: float  #: after the moment at which a checkpoint was due


@dataclass(frozen=True)
class Contrast:
    """Signs of divergence: what only the secondary's guest did in this COLO session.

    `ha.divergence` fills it and says what follows from it. The defaults are those of a sound pair.
    """

    events: tuple[str, ...] = ()  #: events of the guest that only the secondary's QEMU sent
    lines: tuple[str, ...] = ()  #: console lines about damage that only the secondary wrote
    others: int = 0  #: console lines of any kind that it wrote while the primary wrote none
    spinning: int = 0  #: windows in a row in which only its processor never rested
    halted: int = 0  #: windows in a row in which only its processor did nothing
    deaf: bool = False  #: a processor of it alone stood in one place without interrupts
    disks: tuple[str, ...] = ()  #: what a verification found to differ, sentences
    unmatched: int = 0  #: checkpoints in a row that came because an answer had none to compare with


@dataclass(frozen=True)
class Observation:
    """The pair at one beat of its heartbeat."""

    at_s: float  #: monotonic
    protection: Protection
    nodes: Mapping[NodeName, NodeSeen]
    limits: Limits
    link_silent_ms: float | None = None  #: None: the link is not watched now
    #: What was sent over one connection of the pair had no answer for so long, although the kernel
    #: sent it again and the link carries all else; None: that is not known.
    unacked_ms: float | None = None
    unacked_by: str = ""  #: which: "disk" or "memory"
    held_ms: float = 0.0  #: the primary's guest has been stopped for a checkpoint for so long
    overdue_ms: float = 0.0  #: a checkpoint has been due for so long
    #: Bytes of the guest's memory that the peer has acknowledged in the checkpoint under way.
    sent_bytes: int = 0
    sent_idle_ms: float | None = None  #: none of it was for so long; None: that is not known
    boots_alone: bool = False  #: a guest that boots in COLO would damage its secondary
    unfenced: NodeName | None = None  #: the pair has failed because this one is not proven down
    vouched: bool = False  #: a person has confirmed since that it is down
    contrast: Contrast = field(default_factory=Contrast)  #: between both guests

    def to_json(self) -> dict[str, Any]:
        """Return the observation as a document, which `model.revive` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """A diagnosis with what it rests on."""

    diagnosis: Diagnosis
    node: NodeName | None = None  #: the node that it is about
    evidence: tuple[str, ...] = field(default=())  #: sentences, the weightiest first

    def sentence(self) -> str:
        """Describe the finding for an operator."""
        return " ".join(self.evidence) or f"The pair is {self.diagnosis}."

"""Show what was last seen of a pair: values for people and scripts, never used to decide.

`supervisor.state` makes a `PairView` and `control.service` sends it; `cli.views.pair`, `api.pair`
and `metrics/` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from coloctl.model.observation import Diagnosis
from coloctl.model.pair import NodeName, PairSpec, Role
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.model.revive import revive
from coloctl.model.strangers import TurnedAway
from coloctl.model.tuning import Value, by_name
from coloctl.model.verified import Verified

#: Version of the JSON document that `status -f json` prints; grows with incompatible changes only.
STATUS_SCHEMA = 1


class Presence(StrEnum):
    """Presence of the QEMU process of a node."""

    ABSENT = "absent"  #: never started, or stopped by coloctl
    ALIVE = "alive"
    DEAD = "dead"  #: ended without being asked


class Fencing(StrEnum):
    """Progress of the fencing of a node."""

    CLEAR = "clear"
    REQUIRED = "required"
    IN_PROGRESS = "in-progress"
    FENCED = "fenced"
    CONFIRMED = "confirmed"  #: a person confirmed that it is off
    FAILED = "failed"


class Degradation(StrEnum):
    """Part of a node that is impaired although the node serves."""

    REPLICA_DISK = "replica-disk"
    GUEST = "guest"  #: it has diverged from the primary's
    MONITOR = "monitor"


class Merge(StrEnum):
    """Progress of the merge of a promoted secondary's overlays into its image."""

    NONE = "none"  #: it has everything
    UNDER_WAY = "under-way"
    REFUSED = "refused"  #: the image failed; the guest runs on image and overlays together


@dataclass(frozen=True)
class NodeView:
    """One node as last observed; ``None`` means not asked or not answered."""

    name: NodeName
    host: str
    role: Role = Role.NONE
    presence: Presence = Presence.ABSENT
    pid: int | None = None
    run_state: RunState | None = None
    migration: MigrationStatus | None = None
    colo_mode: COLOMode | None = None
    fencing: Fencing = Fencing.CLEAR
    impairments: tuple[Degradation, ...] = ()
    merge: Merge = Merge.NONE
    qemu_version: str = ""
    reach: str = ""  #: why its machine cannot be asked just now, a sentence; empty: it can
    left: str = ""  #: that a QEMU was left there and may still run, a sentence; empty: none was
    late: str = ""  #: its machine answers late, a sentence; empty: it does not
    user: str = ""  #: the account as which its QEMU runs; empty: it was never seen
    unit: str = ""  #: why its QEMU has no unit of systemd, a sentence; empty: one, or none needed
    fresh_code: bool | None = None  #: the fresh-code plugin is loaded; None where none is needed

    @property
    def doing(self) -> str:
        """The state of the node for people: QEMU's run state, or why there is none."""
        if self.left:
            return "left"
        if self.presence is not Presence.ALIVE:
            return self.presence
        if self.reach:
            return "out of reach"
        if Degradation.MONITOR in self.impairments:
            return "not answering"
        return self.run_state or "starting"


@dataclass(frozen=True)
class CheckpointView:
    """Checkpoints of this COLO session, counted from the primary's STOP/RESUME pairs.

    ``period`` is the time from one STOP to the next, ``pause`` from STOP to RESUME; milliseconds,
    quantiles over the last 1,000 checkpoints.
    """

    count: int = 0
    delay_ms: int = 0
    last_pause_ms: float | None = None
    pause_p50_ms: float | None = None
    pause_p99_ms: float | None = None
    last_period_ms: float | None = None
    period_p50_ms: float | None = None


@dataclass(frozen=True)
class ActProgress:
    """Progress of the act under way; bytes where ``unit`` says so."""

    act: str
    step: str
    done: int | None = None
    total: int | None = None
    unit: str = ""
    bytes_per_s: float | None = None  #: of the last 10 s; None where that is not known
    left_s: float | None = None  #: how long the rest takes at this rate


@dataclass(frozen=True)
class SettingView:
    """A setting that can be changed while the pair runs."""

    value: Value
    pair_file: Value  #: with what it began


def settings_view(now: PairSpec, at_first: PairSpec) -> dict[str, SettingView]:
    """Return every setting that can be changed, by name."""
    first = by_name(at_first)
    return {name: SettingView(value, first[name]) for name, value in by_name(now).items()}


@dataclass(frozen=True)
class PairView:
    """The whole pair as last observed."""

    name: str
    protection: Protection
    generation: int
    reason: str  #: one sentence: why the protection is what it is
    since_s: float  #: seconds in this state
    exposed_s: float | None  #: seconds without protection while a guest runs; None when protected
    nodes: Mapping[NodeName, NodeView]
    checkpoints: CheckpointView = field(default_factory=CheckpointView)
    progress: ActProgress | None = None
    supervisor_pid: int | None = None
    spec_path: str = ""
    paused: bool = False  #: nothing is given up without being asked
    diagnosis: Diagnosis = Diagnosis.HEALTHY
    waiting: str = ""  #: what would be done about it and is not, and why; sentences
    protection_wanted: bool = False  #: a guest that runs alone is to be protected again
    exposure: str = ""  #: why it is not protected yet, and what comes next; sentences
    unwritten: str = ""  #: why what happens is not in the journal; a sentence, empty when it is
    copied: str = ""  #: what was copied for the last secondary; a sentence
    verified: Verified | None = None  #: what the last comparison of both nodes' disks found
    turned_away: TurnedAway | None = None  #: strangers on the pair's wires that were cut off
    settings: Mapping[str, SettingView] = field(default_factory=dict)  #: by `tuning.SETTINGS`
    pace: str = ""  #: why adaptive mode has chosen its delay; empty in fixed mode
    stale_code: str = ""  #: that the secondary may run stale code, and what helps; sentences
    given_up: str = ""  #: QEMUs given up with their machine that may still run; sentences
    encryption: str = ""  #: whether what the nodes send to each other is encrypted; sentences

    @property
    def protected(self) -> bool:
        """True while the pair is in COLO."""
        return self.protection is Protection.COLO

    @property
    def doubt(self) -> str:
        """A clause about what puts the protection of a pair in COLO in doubt; empty: nothing.

        A node may be lost already that cannot be given up yet, or of which nothing is known.
        """
        if self.protected and self.waiting:
            return "a node that seems to be lost cannot be given up yet"
        if self.protected and self.diagnosis is Diagnosis.UNKNOWN:
            return "too little is known of its nodes"
        return ""

    def primary(self) -> NodeView | None:
        """Return the node whose output reaches the clients; None where there is none."""
        return self.with_role(Role.PRIMARY)

    def with_role(self, role: Role) -> NodeView | None:
        """Return the node that has ``role``; None where no node has it."""
        return next((node for node in self.nodes.values() if node.role is role), None)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PairView:
        """Rebuild the view from the document of `to_json`.

        Unknown keys are left out and absent ones take their default, so that the documents of an
        older and of a newer supervisor can be read. Raises ValueError for a value that this version
        does not know.
        """
        nodes = {
            node["name"]: node
            for node in document.get("nodes", ())
            if isinstance(node, Mapping) and "name" in node
        }
        return revive(cls, {**document, "nodes": nodes})

    def to_json(self) -> dict[str, Any]:
        """Return the stable document of `status -f json`."""
        document = {"schema": STATUS_SCHEMA, **asdict(self)}
        document["nodes"] = [asdict(self.nodes[name]) for name in sorted(self.nodes)]
        return document

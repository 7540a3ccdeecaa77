"""Explain a pair as a value: its state, its monitoring paths, and what would happen next.

Made by `supervisor.evidence`, sent by `control.service`, read back by `control.acts` and shown by
`cli.verbs.explain`. Rebuilt by `model.revive`, so with the standard library alone.

Invariant: the parts hold what is shown, as text and numbers. The values that a decision rests on
(`ha.decision.Decision`, `ha.monitoring_path.MonitoringPath`, `ha.triggers.Trigger`) stay in `ha/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from coloctl.model.pair import NodeName
from coloctl.model.protection import Protection
from coloctl.model.revive import revive
from coloctl.model.strangers import TurnedAway
from coloctl.model.view import SettingView


@dataclass(frozen=True)
class FindingShown:
    """The name of what is wrong with a pair, with its evidence."""

    name: str  #: a diagnosis, or a state in which every path answers and the pair is not well
    node: NodeName | None
    evidence: tuple[str, ...]  #: sentences


@dataclass(frozen=True)
class DecisionShown:
    """The consequence of the finding now."""

    action: str
    lost: NodeName | None  #: the node to give up
    reason: str  #: sentences


@dataclass(frozen=True)
class PathShown:
    """One monitoring path: how long it is silent, and how long it may be."""

    name: str
    node: NodeName | None  #: None: it belongs to both nodes
    now_ms: float
    limit_ms: float


@dataclass(frozen=True)
class TriggerShown:
    """One thing that may happen next, and what would follow."""

    happens: str
    path: str
    node: NodeName | None
    now_ms: float | None
    limit_ms: float | None
    diagnosis: str
    action: str
    lost: NodeName | None
    winner: NodeName | None
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The document of `explain -f json`; what an earlier supervisor left out has its default."""

    name: str
    protection: Protection
    reason: str
    since_s: float
    exposed_s: float | None
    generation: int
    paused: bool
    auto_failover: bool
    fencing: str  #: the pair's method
    acting: str  #: the act under way, empty: none
    settings: Mapping[str, SettingView] = field(default_factory=dict)
    delay_ms: int = 0
    pace: str = ""
    stale_code: str = ""
    turned_away: TurnedAway | None = None
    agents: Mapping[NodeName, str] = field(default_factory=dict)  #: the last answer of each
    left: tuple[str, ...] = ()  #: a sentence on each QEMU that was left on a machine
    given_up: str = ""  #: QEMUs given up with their machine that may still run; sentences
    diagnosis: FindingShown | None = None  #: None: nothing was observed yet
    decision: DecisionShown | None = None
    paths: tuple[PathShown, ...] = ()
    triggers: tuple[TriggerShown, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Explanation:
        """Rebuild the value from the document of `to_json`; raises ValueError for anything else."""
        return revive(cls, document)

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return asdict(self)

"""Define the result of one run, and its stable JSON document.

Called by `chaos.run.runner`, which makes it; written out by `chaos.run.artifacts`,
`chaos.run.junit` and `chaos.report`; read by `chaos.run.shrink`, `bench.document` and
`cli.demo_run`. Calls `chaos.evidence.chronicle` for the effects of faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from coloctl import __version__
from coloctl.chaos.checks.streams import broken_connections
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.chronicle import FaultEffect
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord, WorkloadRecord
from coloctl.chaos.scenario.values import Scenario
from coloctl.chaos.workloads.history import OpStatus
from coloctl.model.figures import summary
from coloctl.model.timeline import Timeline

#: Version of the document; grows with incompatible changes only.
RESULT_SCHEMA = 1


@dataclass(frozen=True)
class QEMU:
    """The QEMU on which the guest ran."""

    binary: str
    version: str
    accel: str


@dataclass(frozen=True)
class RunResult:
    """One run of a scenario with its verdicts.

    A run that never came to its steady state, or that an error stopped, is unknown. ``reason`` then
    is its cause, and ``evidence`` holds what was gathered until then: no fault, and ``steady_s``
    is the moment at which it was given up.
    """

    scenario: Scenario
    seed: int
    validity: Validity
    verdicts: Sequence[Verdict]
    evidence: Evidence
    replay: str  #: the command line that runs it again
    reason: str = ""  #: a sentence, for an unknown run that no verdict explains
    started_at: str = ""  #: wall clock, ISO 8601 in UTC
    duration_s: float = 0.0
    qemu: QEMU = field(default_factory=lambda: QEMU("", "", ""))
    pair_file: str = ""  #: its text
    machines: Mapping[str, str] = field(default_factory=dict)  #: of each node, where it has one
    artifacts: Path | None = None  #: the folder, where one was written
    document: dict[str, Any] | None = None  #: kept here once the evidence was made small

    def because(self) -> str:
        """Return why the run is not valid, in a line; empty for a valid one."""
        if self.validity is Validity.VALID:
            return ""
        failed = [
            f"{one.check}: {one.because}" for one in self.verdicts if one.validity is self.validity
        ]
        return "; ".join([*([self.reason] if self.reason else []), *failed])

    def to_json(self) -> dict[str, Any]:
        """Return the stable document; times are seconds since the steady state unless in ms."""
        if self.document is not None:
            return self.document
        evidence, chronicle = self.evidence, self.evidence.chronicle
        return {
            "schema": RESULT_SCHEMA,
            "verdict": str(self.validity),
            "reason": self.because(),
            "scenario": {
                "name": self.scenario.name,
                **self.scenario.model_dump(mode="json", include={"title", "why", "promises"}),
            },
            "seed": self.seed,
            "replay": self.replay,
            "started_at": self.started_at,
            "duration_s": round(self.duration_s, 1),
            "load_ended_s": self._since(evidence.ended_s),
            "coloctl": __version__,
            "qemu": asdict(self.qemu),
            "machines": dict(self.machines) or None,
            "checks": [
                {
                    "check": one.check,
                    "verdict": str(one.validity),
                    "because": one.because,
                    "counterexample": list(one.counterexample),
                }
                for one in self.verdicts
            ],
            "faults": [
                self._fault(fault, effect)
                for fault, effect in zip(evidence.faults, chronicle.effects, strict=True)
            ],
            "takeovers": [self._takeover(one) for one in chronicle.takeovers],
            "workloads": [workload(work) for work in evidence.works.values()],
            "checkpoint_pause_ms": summary(one.ms for one in chronicle.pauses),
            "remains": None if evidence.remains is None else list(evidence.remains),
            "artifacts": None if self.artifacts is None else str(self.artifacts),
        }

    def place(self, node: str) -> str:
        """Return the node by name, with its machine where it has one: "b on hv2"."""
        return f"{node} on {self.machines[node]}" if node in self.machines else node

    def light(self) -> RunResult:
        """Return the same without what is large: hundreds of them can be kept and sent."""
        works = {
            name: replace(work, history=(), kept=None) for name, work in self.evidence.works.items()
        }
        small = replace(self.evidence, works=works, events=(), frames=(), journal=(), audits=())
        return replace(self, evidence=small, document=self.to_json())

    def _since(self, at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - self.evidence.steady_s, 3)

    def _fault(self, fault: FaultRecord, effect: FaultEffect) -> dict[str, Any]:
        return {
            "name": fault.fault.name,
            "kind": fault.fault.kind,
            "target": fault.fault.target,
            "params": fault.fault.params.model_dump(mode="json"),
            "when": None if fault.fault.when is None else str(fault.fault.when),
            "nodes": list(fault.nodes),
            "role": fault.role,
            "struck_s": self._since(fault.at_s),
            "healed_s": self._since(fault.healed_s),
            "missed": fault.missed,
            "note": fault.note,
            "outage_ms": effect.outage.longest_ms,
            "first_reply_ms": effect.outage.first_reply_ms,
            "join_ms": effect.join_ms,
            "protection_lost_s": self._since(effect.lost_s),
            "protected_again_s": self._since(effect.again_s),
        }

    def _takeover(self, one: Timeline) -> dict[str, Any]:
        return {
            "survivor": one.survivor,
            "lost": one.lost,
            "role_before": str(one.role_before),
            "cause": one.cause,
            "began_s": self._since(one.began_s),
            "steps_ms": {str(step): at_ms for step, at_ms in one.steps.items()},
        }


def workload(work: WorkloadRecord) -> dict[str, Any]:
    """Count the operations and the connections of one workload."""
    seen = Counter(op.outcome for op in work.history if op.n >= 0)
    return {
        "name": work.spec.name,
        "kind": work.spec.kind,
        "clients": work.spec.clients,
        "sent": seen[OpStatus.INVOKE],
        "acknowledged": seen[OpStatus.OK],
        "failed": seen[OpStatus.FAIL],
        "unknown": seen[OpStatus.INFO],
        "connections": sum(op.note.startswith("opened ") for op in work.history),
        "broken": len(broken_connections(work.history)),
    }

"""How one run ended: what the runner hands out, and its stable JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coloctl import __version__
from coloctl.chaos.checks import verdict
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence import account
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord, Takeover, WorkloadRecord
from coloctl.chaos.run.figures import summary
from coloctl.chaos.scenario.values import Scenario
from coloctl.chaos.workloads import history

#: Version of the document; grows with incompatible changes only.
OUTCOME_SCHEMA = 1


@dataclass(frozen=True)
class QEMU:
    """What the guest ran on."""

    binary: str
    version: str
    accel: str


@dataclass(frozen=True)
class Outcome:
    """One run of a scenario, judged.

    A run that never came to its steady state, or that something stopped, is unknown; ``reason``
    says why, and ``evidence`` holds what was gathered until then, with ``steady_s`` the moment at
    which it was given up and no fault struck.
    """

    scenario: Scenario
    seed: int
    validity: Validity
    verdicts: Sequence[Verdict]
    evidence: Evidence
    replay: str  #: the command line that plays it again
    reason: str = ""  #: a sentence, for an unknown run that no verdict explains
    started_at: str = ""  #: wall clock, ISO 8601 in UTC
    duration_s: float = 0.0
    qemu: QEMU = field(default_factory=lambda: QEMU("", "", ""))
    pair_file: str = ""  #: its text
    artifacts: Path | None = None  #: the folder, where one was written
    told: dict[str, Any] | None = None  #: its document, once the evidence was made small

    def because(self) -> str:
        """Why the run is not valid, in a line; empty for a valid one."""
        if self.validity is Validity.VALID:
            return ""
        guilty = [
            f"{one.check}: {one.because}" for one in self.verdicts if one.validity is self.validity
        ]
        return "; ".join([*([self.reason] if self.reason else []), *guilty])

    def to_json(self) -> dict[str, Any]:
        """The stable document. Times are seconds since the steady state unless they say ms."""
        if self.told is not None:
            return self.told
        scenario, evidence = self.scenario, self.evidence
        return {
            "schema": OUTCOME_SCHEMA,
            "verdict": str(self.validity),
            "reason": self.because(),
            "scenario": {
                "name": scenario.name,
                "title": scenario.title,
                "why": scenario.why,
                "promises": list(scenario.promises),
            },
            "seed": self.seed,
            "replay": self.replay,
            "started_at": self.started_at,
            "duration_s": round(self.duration_s, 1),
            "load_ended_s": self._since(evidence.ended_s),
            "coloctl": __version__,
            "qemu": {
                "binary": self.qemu.binary,
                "version": self.qemu.version,
                "accel": self.qemu.accel,
            },
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
                self._fault(fault, felt)
                for fault, felt in zip(evidence.faults, account.felt(evidence), strict=True)
            ],
            "takeovers": [self._takeover(one) for one in evidence.takeovers],
            "workloads": [workload(work) for work in evidence.works.values()],
            "checkpoint_pause_ms": summary(one.ms for one in account.pauses(evidence.events)),
            "remains": None if evidence.remains is None else list(evidence.remains),
            "artifacts": None if self.artifacts is None else str(self.artifacts),
        }

    def light(self) -> Outcome:
        """The same without what is large: it can be kept by the hundred, and sent about."""
        works = {
            name: replace(work, history=(), kept=None) for name, work in self.evidence.works.items()
        }
        small = replace(self.evidence, works=works, events=(), frames=(), journal=(), audits=())
        return replace(self, evidence=small, told=self.to_json())

    def _since(self, at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - self.evidence.steady_s, 3)

    def _fault(self, fault: FaultRecord, felt: account.Felt) -> dict[str, Any]:
        gap = account.protection_gap(self.evidence, fault)
        return {
            "name": fault.fault.name,
            "kind": fault.fault.kind,
            "target": fault.fault.target,
            "params": dict(fault.fault.params),
            "when": None if fault.fault.when is None else str(fault.fault.when),
            "nodes": list(fault.nodes),
            "role": fault.role,
            "struck_s": self._since(fault.at_s),
            "healed_s": self._since(fault.healed_s),
            "missed": fault.missed,
            "note": fault.note,
            "outage_ms": felt.outage.longest_ms,
            "first_reply_ms": felt.outage.first_reply_ms,
            "join_ms": felt.join_ms,
            "protection_lost_s": self._since(gap.lost_s if gap else None),
            "protected_again_s": self._since(gap.again_s if gap else None),
        }

    def _takeover(self, one: Takeover) -> dict[str, Any]:
        return {
            "survivor": one.survivor,
            "lost": one.lost,
            "role_before": one.role_before,
            "cause": one.cause,
            "began_s": self._since(one.began_s),
            "steps_ms": dict(one.steps),
        }


def workload(work: WorkloadRecord) -> dict[str, Any]:
    """What the clients of one workload did, counted."""
    seen = Counter(op.outcome for op in work.history if op.n >= 0)
    return {
        "name": work.spec.name,
        "kind": work.spec.kind,
        "clients": work.spec.clients,
        "sent": seen[history.Outcome.INVOKE],
        "acknowledged": seen[history.Outcome.OK],
        "failed": seen[history.Outcome.FAIL],
        "unknown": seen[history.Outcome.INFO],
        "connections": sum(op.note.startswith("opened ") for op in work.history),
        "broken": len(verdict.broken_connections(work.history)),
    }

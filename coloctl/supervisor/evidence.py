"""Show what the supervisor believes and why, as documents for `explain`, `events` and `bundle`.

Called by `control.service`; takes the observation and the finding of `supervisor.state`, and asks
`ha.decision`, `ha.monitoring_path` and `ha.triggers` what follows from them.

Invariant: only reads; the same decision functions as in a real failover give the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from coloctl.ha.decision import decide
from coloctl.ha.monitoring_path import monitoring_paths
from coloctl.ha.triggers import triggers
from coloctl.model.explanation import (
    DecisionShown,
    Explanation,
    FindingShown,
    PathShown,
    TriggerShown,
)
from coloctl.model.observation import Diagnosis, Finding
from coloctl.model.pair import NodeName
from coloctl.model.protection import Protection
from coloctl.model.view import Fencing
from coloctl.supervisor.state import PairState


def explanation(state: PairState) -> Explanation:
    """Explain the state: what is seen of the pair, what is decided, and what would follow."""
    view, seen, finding = state.view(), state.observation, state.finding
    spec, name = state.spec, state.spec.name
    known = Explanation(
        name=name,
        protection=view.protection,
        reason=view.reason,
        since_s=view.since_s,
        exposed_s=view.exposed_s,
        generation=view.generation,
        paused=state.paused,
        auto_failover=spec.policy.auto_failover,
        fencing=spec.fencing.method,
        acting=state.act,
        settings=view.settings,
        delay_ms=state.delay_ms,
        pace=view.pace,
        stale_code=view.stale_code,
        turned_away=view.turned_away,
        agents={node: heard.said for node, heard in state.agents.items()},
        left=tuple(node.left for node in view.nodes.values() if node.left),
        given_up=view.given_up,
        diagnosis=_unsound(state),
    )
    if seen is None:
        return known
    paused, acting = state.paused, state.act
    decision = decide(finding, seen, spec.policy, paused=paused, acting=acting, pair=name)
    next_ones = triggers(seen, spec.policy, paused, acting=acting, pair=name)
    return replace(
        known,
        diagnosis=known.diagnosis or found(finding),
        decision=DecisionShown(**vars(decision)),
        paths=tuple(PathShown(**vars(path)) for path in monitoring_paths(seen)),
        triggers=tuple(TriggerShown(**vars(one)) for one in next_ones),
    )


def _unsound(state: PairState) -> FindingShown | None:
    """Return what is wrong with a pair whose monitoring paths all answer, and which is not well.

    None where nothing is wrong: then the diagnosis stands.
    """
    if state.finding.diagnosis is not Diagnosis.HEALTHY:
        return None
    name, said, reason = "", "", state.view().reason
    node: NodeName | None = None
    asked = [one.name for one in state.seats.values() if one.view.fencing is Fencing.REQUIRED]
    if state.protection is Protection.DOWN:
        name, said = "down", "No QEMU of the pair runs a guest."
    elif state.unfenced is not None:
        name, node = "unfenced", state.unfenced
        said = f"Node {node} answers or is silent, and is not proven down."
    elif asked:
        name, node = "unfenced", asked[0]
        said = f"A failover waits until a person confirms that node {node} is down."
    elif state.protection is Protection.FAILED:
        name, said = "failed", f"An earlier failover failed: {reason}"
    elif state.protection is Protection.FAILOVER:
        name, said = "failover", f"One node is lost: {reason}"
    return FindingShown(name, node, (said,)) if name else None


def found(finding: Finding) -> FindingShown:
    """Return a diagnosis with its evidence."""
    return FindingShown(finding.diagnosis, finding.node, finding.evidence)


def evidence(state: PairState) -> dict[str, Any]:
    """Return the last observation, as it can be replayed, and the finding in it."""
    seen = state.observation
    return {
        "observation": None if seen is None else seen.to_json(),
        "finding": None if seen is None else asdict(found(state.finding)),
    }


def records(state: PairState) -> list[Mapping[str, Any]]:
    """Return the view of the pair as flat records, each with its kind under ``exists``.

    One for the pair, one for each node, one for the checkpoints and one for the diagnosis.
    """
    pair = state.view().to_json()
    nodes, checkpoints = pair.pop("nodes"), pair.pop("checkpoints")
    del pair["schema"]
    dumped: list[Mapping[str, Any]] = [{"exists": "pair", **pair}]
    dumped += [{"exists": "node", **node} for node in nodes]
    dumped.append({"exists": "checkpoints", **checkpoints})
    dumped.append({"exists": "diagnosis", **asdict(_unsound(state) or found(state.finding))})
    return dumped

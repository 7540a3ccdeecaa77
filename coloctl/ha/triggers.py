"""Predict what would make the supervisor act now, and which node would run the guest; pure.

Called by `supervisor.evidence` for `explain`; asks `ha.analysis` and `ha.decision`.

Invariant: each answer is found by changing one thing in the observation and asking `diagnose` and
`decide`, so that the answers of `explain` and the acts of the supervisor cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from coloctl.ha.analysis import diagnose
from coloctl.ha.decision import Action, decide
from coloctl.ha.monitoring_path import holder, members, out_of_reach
from coloctl.model.observation import Diagnosis, Life, Notice, Observation
from coloctl.model.pair import NodeName, Policy, Role, other


@dataclass(frozen=True)
class Trigger:
    """One thing that may happen next, and what would follow."""

    happens: str  #: "node a's process ends", for people
    #: "process", "rescue", "command", "agent", "link", "data", "held", "overdue" or "event"
    path: str
    node: NodeName | None  #: the node that it happens to
    now_ms: float | None  #: how silent the path is; None: it is not measured in time
    limit_ms: float | None
    diagnosis: Diagnosis
    action: Action
    lost: NodeName | None  #: the node that would be given up
    winner: NodeName | None  #: the node that would run the guest alone
    reason: str

    def to_json(self) -> Mapping[str, Any]:
        """Return the fields by name; action and diagnosis by their values."""
        return asdict(self)


@dataclass(frozen=True)
class _Change:
    happens: str
    path: str
    node: NodeName | None
    then: Observation
    now_ms: float | None = None
    limit_ms: float | None = None


def triggers(
    observation: Observation,
    policy: Policy,
    paused: bool,
    *,
    acting: str = "",
    pair: str = "PAIR",
) -> tuple[Trigger, ...]:
    """Predict where each single thing that may happen next would lead."""
    return tuple(
        _followed(change, policy, paused=paused, acting=acting, pair=pair)
        for change in _changes(observation)
    )


def _followed(change: _Change, policy: Policy, *, paused: bool, acting: str, pair: str) -> Trigger:
    finding = diagnose(change.then)
    decision = decide(finding, change.then, policy, paused=paused, acting=acting, pair=pair)
    alone = decision.action is Action.FAIL_OVER and decision.lost is not None
    return Trigger(
        change.happens,
        change.path,
        change.node,
        change.now_ms,
        change.limit_ms,
        finding.diagnosis,
        decision.action,
        decision.lost,
        other(decision.lost) if alone and decision.lost else None,
        decision.reason,
    )


def _changes(seen: Observation) -> Iterator[_Change]:
    for node in members(seen):
        yield from _of_node(seen, node)
    primary, secondary = holder(seen, Role.PRIMARY), holder(seen, Role.SECONDARY)
    if not (primary and secondary):
        return
    limits = seen.limits
    if seen.link_silent_ms is not None:
        then = replace(seen, link_silent_ms=max(seen.link_silent_ms, limits.link_ms))
        yield _Change(
            "nothing crosses the replication link",
            "link",
            None,
            then,
            seen.link_silent_ms,
            limits.link_ms,
        )
    if (unacked_ms := seen.unacked_ms) is not None:
        then = replace(
            seen,
            unacked_ms=max(unacked_ms, limits.silent_ms),
            unacked_by=seen.unacked_by or "disk",
        )
        happens = "disk writes or memory do not get through"
        yield _Change(happens, "data", None, then, unacked_ms, limits.silent_ms)
    then = replace(seen, held_ms=max(seen.held_ms, limits.stall_ms))
    yield _Change("a checkpoint does not end", "held", None, then, seen.held_ms, limits.stall_ms)
    then = replace(seen, overdue_ms=max(seen.overdue_ms, limits.overdue_ms))
    yield _Change(
        "a checkpoint does not begin", "overdue", None, then, seen.overdue_ms, limits.overdue_ms
    )
    then = replace(seen, contrast=replace(seen.contrast, deaf=True))
    happens = f"node {secondary}'s guest does what node {primary}'s does not"
    yield _Change(happens, "event", secondary, then)
    happens = f"node {secondary}'s disk misses a write"
    yield _event(seen, primary, Notice.REPLICA_WRITE_ERROR, happens)
    yield _event(seen, primary, Notice.LOCAL_WRITE_ERROR, f"node {primary}'s disk misses a write")
    yield _event(seen, primary, Notice.COLO_EXIT, f"node {primary} leaves COLO with an error")


def _of_node(seen: Observation, node: NodeName) -> Iterator[_Change]:
    now, limits = seen.nodes[node], seen.limits
    rescue_ms, command_ms = now.rescue_silent_ms, now.command_silent_ms

    def changed(**fields: Any) -> Observation:
        return replace(seen, nodes={**seen.nodes, node: replace(now, **fields)})

    yield _Change(f"node {node}'s process ends", "process", node, changed(life=Life.DEAD))
    if now.agent_silent_ms is not None:
        yield from _of_agent(seen, node)
    if out_of_reach(seen, node):
        return  # nothing that its QEMU does would be seen now
    then = changed(life=Life.STOPPED, rescue_silent_ms=max(rescue_ms, limits.suspect_ms))
    yield _Change(
        f"node {node}'s process is stopped", "rescue", node, then, rescue_ms, limits.suspect_ms
    )
    then = changed(life=Life.ALIVE, busy=False, rescue_silent_ms=max(rescue_ms, limits.silent_ms))
    yield _Change(
        f"node {node} does nothing and answers nothing",
        "rescue",
        node,
        then,
        rescue_ms,
        limits.silent_ms,
    )
    then = changed(command_silent_ms=max(command_ms, limits.command_ms))
    yield _Change(
        f"node {node}'s main loop does not answer",
        "command",
        node,
        then,
        command_ms,
        limits.command_ms,
    )
    if now.role is Role.PRIMARY:
        yield _event(seen, node, Notice.GUEST_SHUTDOWN, "the guest powers off")
        yield _event(seen, node, Notice.GUEST_RESET, "the guest is reset")
        yield _event(seen, node, Notice.GUEST_PANIC, "the guest's kernel panics")


def _of_agent(seen: Observation, node: NodeName) -> Iterator[_Change]:
    """List what may happen to the machine of a node that is reached through an agent."""
    now, limits = seen.nodes[node], seen.limits
    agent_ms = now.agent_silent_ms or 0.0
    lost = replace(
        now, life=Life.UNKNOWN, busy=False, agent_silent_ms=max(agent_ms, limits.silent_ms)
    )
    then = replace(seen, nodes={**seen.nodes, node: lost})
    if not out_of_reach(seen, node):
        happens = f"the agent on node {node}'s machine reports nothing"
        yield _Change(happens, "agent", node, then, agent_ms, limits.silent_ms)
    if seen.link_silent_ms is not None:
        off = replace(then, link_silent_ms=max(seen.link_silent_ms, limits.link_ms))
        happens = f"node {node}'s machine loses its power"
        yield _Change(happens, "agent", node, off, agent_ms, limits.silent_ms)


def _event(seen: Observation, node: NodeName, notice: Notice, happens: str) -> _Change:
    now = seen.nodes[node]
    notices = now.notices if notice in now.notices else (*now.notices, notice)
    then = replace(seen, nodes={**seen.nodes, node: replace(now, notices=notices)})
    return _Change(happens, "event", node, then)

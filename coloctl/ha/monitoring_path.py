"""List the monitoring paths to a pair's nodes and weigh their silences; pure.

Called by `ha.analysis` and `ha.eligibility` to find which node is gone, and by
`supervisor.evidence` and `control.daemon.export` to show each path beside its limit. Reads nothing
but a `model.observation`.

Invariant: a silence alone never makes a node dead. One that the kernel attests ("stopped") counts
sooner than one that nothing attests. A process that uses CPU time is not frozen, however silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coloctl.model.observation import Life, NodeSeen, Notice, Observation
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.model.protection import Protection


class Gone(StrEnum):
    """A reason why a node cannot be relied on."""

    DEAD = "dead"  #: proven
    FROZEN = "frozen"  #: its process exists, uses no CPU time and answers nothing
    UNREACHABLE = "unreachable"  #: its host reports nothing of it, and no path answers


@dataclass(frozen=True)
class MonitoringPath:
    """One way to observe a node or the link: how long it is silent, and how long it may be."""

    name: str  #: "rescue", "command", "agent", "link", "data", "held" or "overdue"
    node: NodeName | None  #: None: it belongs to both nodes
    now_ms: float
    limit_ms: float


def holder(observation: Observation, role: Role) -> NodeName | None:
    """Return the node that has ``role``, if one has."""
    for node in NODES:
        seen = observation.nodes.get(node)
        if seen is not None and seen.role is role:
            return node
    return None


def gone(observation: Observation, node: NodeName) -> Gone | None:
    """Find why ``node`` cannot be relied on; None while nothing speaks against it.

    A process that the kernel calls stopped counts as frozen after the short limit, one that only
    uses no CPU time after the long one.
    """
    seen, limits = observation.nodes[node], observation.limits
    if seen.life is Life.DEAD:
        return Gone.DEAD
    if seen.life is Life.STOPPED:
        silent = seen.rescue_silent_ms >= min(limits.suspect_ms, limits.silent_ms)
        return Gone.FROZEN if silent else None
    if seen.life is Life.ALIVE:
        frozen = seen.rescue_silent_ms >= limits.silent_ms and not seen.busy
        return Gone.FROZEN if frozen else None
    link_ms = observation.link_silent_ms
    shown = _checkpoints_show(observation, node)
    runs = shown if link_ms is None else link_ms < limits.link_ms
    all_silent = (
        unheard_ms(seen, seen.rescue_silent_ms) >= limits.silent_ms
        and unheard_ms(seen, seen.command_silent_ms) >= limits.silent_ms
    )
    return Gone.UNREACHABLE if all_silent and not runs else None


def _checkpoints_show(observation: Observation, node: NodeName) -> bool:
    """Return whether the primary's checkpoints would show the end of ``node``, its secondary.

    For a node of which only the agent is silent: each checkpoint needs its QEMU's answer. A primary
    whose agent is late reports of its checkpoints in a moment, so nothing is given up meanwhile.
    """
    seen, primary = observation.nodes[node], holder(observation, Role.PRIMARY)
    return (
        seen.role is Role.SECONDARY
        and seen.rescue_silent_ms < observation.limits.silent_ms
        and observation.protection is Protection.COLO
        and primary is not None
        and unheard_ms(observation.nodes[primary], 0.0) < observation.limits.silent_ms
    )


def unheard_ms(seen: NodeSeen, silent_ms: float) -> float:
    """Return for how long nothing is known on a path that is silent for ``silent_ms``.

    No question reaches a machine of which nothing is known and whose agent reports nothing.
    """
    if seen.life is not Life.UNKNOWN:
        return silent_ms
    return max(silent_ms, seen.agent_silent_ms or 0.0)


def out_of_reach(observation: Observation, node: NodeName) -> bool:
    """Return whether nothing of ``node`` is known because its machine's agent reports nothing."""
    seen, limits = observation.nodes[node], observation.limits
    return seen.life is Life.UNKNOWN and (seen.agent_silent_ms or 0.0) >= limits.silent_ms


def monitoring_paths(observation: Observation) -> tuple[MonitoringPath, ...]:
    """List every monitoring path that is watched now."""
    limits = observation.limits
    found = []
    for node in NODES:
        seen = observation.nodes.get(node)
        if seen is not None and seen.role is not Role.NONE:
            attested = seen.life is Life.STOPPED
            rescue_ms = limits.suspect_ms if attested else limits.silent_ms
            found.append(MonitoringPath("rescue", node, seen.rescue_silent_ms, rescue_ms))
            found.append(MonitoringPath("command", node, seen.command_silent_ms, limits.command_ms))
            if seen.agent_silent_ms is not None:
                agent_ms = seen.agent_silent_ms
                found.append(MonitoringPath("agent", node, agent_ms, limits.silent_ms))
    if observation.link_silent_ms is not None:
        found.append(MonitoringPath("link", None, observation.link_silent_ms, limits.link_ms))
    if holder(observation, Role.PRIMARY) and holder(observation, Role.SECONDARY):
        if observation.unacked_ms is not None:
            found.append(MonitoringPath("data", None, observation.unacked_ms, limits.silent_ms))
        found.append(MonitoringPath("held", None, observation.held_ms, limits.stall_ms))
        found.append(MonitoringPath("overdue", None, observation.overdue_ms, limits.overdue_ms))
    return tuple(found)


def members(observation: Observation) -> tuple[NodeName, ...]:
    """List the nodes that have a role in the pair."""
    nodes = observation.nodes
    return tuple(n for n in NODES if n in nodes and nodes[n].role is not Role.NONE)


def both(observation: Observation) -> tuple[NodeName | None, NodeName | None]:
    """Return primary and secondary."""
    return holder(observation, Role.PRIMARY), holder(observation, Role.SECONDARY)


def absence(observation: Observation, node: NodeName) -> str:
    """Explain as a sentence why ``node``, which is gone, cannot be relied on."""
    seen = observation.nodes[node]
    how, silence = gone(observation, node), rescue_silence(observation, node)
    if how is Gone.DEAD:
        off = " after its guest powered off" if Notice.GUEST_SHUTDOWN in seen.notices else ""
        return f"Node {node}'s process has ended{off}."
    if how is Gone.UNREACHABLE:
        return f"No monitoring path reaches node {node} any more, and {silence}"
    if seen.life is Life.STOPPED:
        return f"Node {node}'s process is stopped (SIGSTOP); {silence}"
    return f"Node {node}'s process exists and uses no CPU time; {silence}"


def rescue_silence(observation: Observation, node: NodeName) -> str:
    """Describe how long ``node``'s monitor thread has been silent, and how long it may be.

    Where its machine's agent has been silent for longer, describe that.
    """
    seen, limits = observation.nodes[node], observation.limits
    agent_ms = seen.agent_silent_ms or 0.0
    if seen.life is Life.UNKNOWN and agent_ms > seen.rescue_silent_ms:
        return (
            f"its machine's agent has reported nothing for {agent_ms:.0f} ms (limit "
            f"{limits.silent_ms:.0f} ms)."
        )
    attested = seen.life is not Life.ALIVE and gone(observation, node) is not Gone.UNREACHABLE
    limit_ms = limits.suspect_ms if attested else limits.silent_ms
    return (
        f"its rescue monitor has not answered for {seen.rescue_silent_ms:.0f} ms (limit "
        f"{limit_ms:.0f} ms)."
    )


def runs_on(observation: Observation) -> str:
    """Return what shows that a QEMU runs of which no agent reports, for the end of a sentence."""
    shown = [] if observation.link_silent_ms is None else ["the replication link"]
    primary, secondary = both(observation)
    if primary and secondary:
        if not unheard_ms(observation.nodes[primary], 0.0):
            shown.append("the checkpoints")
        if shown:
            show = "shows" if shown == ["the replication link"] else "show"
            return f"its QEMU runs on as far as {' and '.join(shown)} {show}."
    return "whether its QEMU runs is not known."

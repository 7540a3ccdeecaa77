"""The roads that lead to a node, and what their silence is worth: the words of every diagnosis.

A silence alone never makes a node dead. One that the kernel attests ("stopped") counts sooner than
one that nothing attests, and a process that uses CPU time is not frozen, however silent it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coloctl.model.observation import Life, Observation
from coloctl.model.pair import NODES, NodeName, Role


class Gone(StrEnum):
    """Why a node cannot be counted on."""

    DEAD = "dead"  #: proven
    FROZEN = "frozen"  #: its process exists, runs nothing and answers nothing
    UNREACHABLE = "unreachable"  #: its host says nothing of it, and no road leads there


@dataclass(frozen=True)
class MonitoringPath:
    """One road of evidence, how long it has been silent, and how long it may be."""

    name: str  #: "rescue", "command", "link", "data", "held" or "overdue"
    node: NodeName | None  #: None: it belongs to both
    now_ms: float
    limit_ms: float

    def near(self) -> bool:
        """Half of the limit is behind it, and the limit is not reached."""
        return self.limit_ms / 2 < self.now_ms < self.limit_ms


def holder(observation: Observation, role: Role) -> NodeName | None:
    """The node that has ``role``, if one has."""
    for node in NODES:
        seen = observation.nodes.get(node)
        if seen is not None and seen.role is role:
            return node
    return None


def gone(observation: Observation, node: NodeName) -> Gone | None:
    """Why ``node`` cannot be counted on, None while nothing says so."""
    seen, limits = observation.nodes[node], observation.limits
    if seen.life is Life.DEAD:
        return Gone.DEAD
    if seen.life is Life.STOPPED:
        silent = seen.rescue_silent_ms >= min(limits.suspect_ms, limits.silent_ms)
        return Gone.FROZEN if silent else None
    if seen.rescue_silent_ms < limits.silent_ms:
        return None
    if seen.life is Life.ALIVE:
        return None if seen.busy else Gone.FROZEN
    link_ms = observation.link_silent_ms
    every_road = seen.command_silent_ms >= limits.silent_ms and (
        link_ms is None or link_ms >= limits.link_ms
    )
    return Gone.UNREACHABLE if every_road else None


def roads(observation: Observation) -> tuple[MonitoringPath, ...]:
    """Every road that is watched now."""
    limits = observation.limits
    found = []
    for node in NODES:
        seen = observation.nodes.get(node)
        if seen is not None and seen.role is not Role.NONE:
            attested = seen.life is Life.STOPPED
            rescue_ms = limits.suspect_ms if attested else limits.silent_ms
            found.append(MonitoringPath("rescue", node, seen.rescue_silent_ms, rescue_ms))
            found.append(MonitoringPath("command", node, seen.command_silent_ms, limits.command_ms))
    if observation.link_silent_ms is not None:
        found.append(MonitoringPath("link", None, observation.link_silent_ms, limits.link_ms))
    if holder(observation, Role.PRIMARY) and holder(observation, Role.SECONDARY):
        if observation.unacked_ms is not None:
            found.append(MonitoringPath("data", None, observation.unacked_ms, limits.silent_ms))
        found.append(MonitoringPath("held", None, observation.held_ms, limits.stall_ms))
        found.append(MonitoringPath("overdue", None, observation.overdue_ms, limits.overdue_ms))
    return tuple(found)


def near_miss(observation: Observation) -> tuple[MonitoringPath, ...]:
    """The roads that have used up more than half of their limit and have not reached it."""
    return tuple(road for road in roads(observation) if road.near())


def members(observation: Observation) -> tuple[NodeName, ...]:
    """The nodes that have a part in the pair."""
    nodes = observation.nodes
    return tuple(n for n in NODES if n in nodes and nodes[n].role is not Role.NONE)


def both(observation: Observation) -> tuple[NodeName | None, NodeName | None]:
    """Primary and secondary."""
    return holder(observation, Role.PRIMARY), holder(observation, Role.SECONDARY)


def absence(observation: Observation, node: NodeName) -> str:
    """Why ``node``, which is gone, is."""
    seen = observation.nodes[node]
    how = gone(observation, node)
    if how is Gone.DEAD:
        off = " after its guest powered off" if "guest-shutdown" in seen.notices else ""
        return f"Node {node}'s process has ended{off}."
    if how is Gone.UNREACHABLE:
        return f"No road leads to node {node} any more, and {owes(observation, node)}"
    if seen.life is Life.STOPPED:
        return f"Node {node}'s process is stopped (SIGSTOP); {owes(observation, node)}"
    return f"Node {node}'s process exists and uses no CPU time; {owes(observation, node)}"


def owes(observation: Observation, node: NodeName) -> str:
    """How long ``node``'s monitor thread has been silent, and how long it may be."""
    seen, limits = observation.nodes[node], observation.limits
    attested = seen.life is not Life.ALIVE and gone(observation, node) is not Gone.UNREACHABLE
    limit_ms = limits.suspect_ms if attested else limits.silent_ms
    return (
        f"its rescue monitor has owed an answer for {seen.rescue_silent_ms:.0f} ms (limit "
        f"{limit_ms:.0f} ms)."
    )

"""Observations of a pair that does not exist: by hand, and as hypothesis draws them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from coloctl.model.observation import Life, Limits, NodeSeen, Notice, Observation
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Protection

LIMITS = Limits(
    suspect_ms=120.0,
    silent_ms=400.0,
    link_ms=300.0,
    command_ms=3000.0,
    stall_ms=2000.0,
    overdue_ms=4000.0,
)
PRIMARY = NodeSeen(Role.PRIMARY, Life.ALIVE)
SECONDARY = NodeSeen(Role.SECONDARY, Life.ALIVE)

#: Of each limit: nothing, just below, reached, far beyond.
_SHARES = (0.0, 0.6, 0.99, 1.0, 3.0)


def observe(
    a: NodeSeen = PRIMARY,
    b: NodeSeen = SECONDARY,
    protection: Protection = Protection.COLO,
    link_silent_ms: float | None = 0.0,
    **roads: float | None,
) -> Observation:
    """A pair in COLO on which everything answers, except for what is given."""
    nodes: dict[NodeName, NodeSeen] = {"a": a, "b": b}
    return Observation(10.0, protection, nodes, LIMITS, link_silent_ms, **roads)


#: What can be said of a process: what the kernel says, and whether it used CPU time.
LIVES = [
    {"life": Life.ALIVE, "busy": False},
    {"life": Life.ALIVE, "busy": True},
    {"life": Life.STOPPED, "busy": False},
    {"life": Life.DEAD, "busy": False},
    {"life": Life.UNKNOWN, "busy": False},
]
ROLES = [
    (Role.PRIMARY, Role.SECONDARY),
    (Role.SECONDARY, Role.PRIMARY),
    (Role.PRIMARY, Role.NONE),
    (Role.NONE, Role.NONE),
    (Role.PRIMARY, Role.PRIMARY),
]
#: Below, between and at the limits of a rescue road.
RESCUE = (0.0, LIMITS.suspect_ms, LIMITS.silent_ms)


def every_silence() -> Iterator[Observation]:
    """Lives x roles x rescue silences x link x main loop."""
    for roles, a, b in itertools.product(ROLES, LIVES, LIVES):
        for rescue_a, rescue_b in itertools.product(RESCUE, RESCUE):
            for link, command_ms in itertools.product((None, 299.0, 300.0), (0.0, 3000.0)):
                nodes = [
                    NodeSeen(role, rescue_silent_ms=rescue, command_silent_ms=command_ms, **life)
                    for role, rescue, life in zip(roles, (rescue_a, rescue_b), (a, b), strict=True)
                ]
                yield observe(nodes[0], nodes[1], link_silent_ms=link)


def _silences(*limits: float) -> st.SearchStrategy[float]:
    named = sorted({limit * share for limit in limits for share in _SHARES})
    return st.sampled_from(named) | st.floats(0.0, 2 * max(limits))


def every_unknown() -> Iterator[Observation]:
    """Not known x agent x rescue x main loop x link x COLO_EXIT x checkpoints."""
    agents = (None, 0.0, LIMITS.silent_ms - 1, LIMITS.silent_ms, 60_000.0)
    for roles, lives in itertools.product(ROLES[:3], [("a",), ("b",), ("a", "b")]):
        for agent, rescue in itertools.product(agents, RESCUE):
            for command, link in itertools.product(
                (0.0, LIMITS.silent_ms), (None, 0.0, LIMITS.link_ms - 1, LIMITS.link_ms)
            ):
                for on, held in itertools.product((None, "a", "b"), (0.0, LIMITS.stall_ms)):
                    nodes = {
                        name: NodeSeen(
                            role,
                            Life.UNKNOWN if name in lives else Life.ALIVE,
                            rescue_silent_ms=rescue if name in lives else 0.0,
                            command_silent_ms=command if name in lives else 0.0,
                            agent_silent_ms=agent if name in lives else None,
                            notices=(Notice.COLO_EXIT,) if name == on else (),
                        )
                        for name, role in zip("ab", roles, strict=True)
                    }
                    yield observe(nodes["a"], nodes["b"], link_silent_ms=link, held_ms=held)


_RESCUE = _silences(LIMITS.suspect_ms, LIMITS.silent_ms)
_AGENT = _silences(LIMITS.suspect_ms, LIMITS.silent_ms)
_COMMAND = _silences(LIMITS.silent_ms, LIMITS.command_ms)
_LINK = _silences(LIMITS.link_ms)
_UNACKED = _silences(LIMITS.silent_ms)
_HELD = _silences(LIMITS.stall_ms)
_OVERDUE = _silences(LIMITS.overdue_ms)

_NODES = st.builds(
    NodeSeen,
    role=st.sampled_from(Role),
    life=st.sampled_from(Life),
    busy=st.booleans(),
    rescue_silent_ms=_RESCUE,
    command_silent_ms=_COMMAND,
    agent_silent_ms=st.none() | _AGENT,
    agent_delay_ms=st.floats(0.0, 3000.0),
    notices=st.lists(st.sampled_from(Notice), max_size=3, unique=True).map(tuple),
)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Any observation that can be written down, of sensible pairs more often than of others."""
    a, b = draw(_NODES), draw(_NODES)
    if draw(st.integers(0, 3)):
        a, b = replace(a, role=Role.PRIMARY), replace(b, role=Role.SECONDARY)
    return observe(
        a,
        b,
        draw(st.sampled_from(Protection)),
        draw(st.none() | _LINK),
        unacked_ms=draw(st.none() | _UNACKED),
        held_ms=draw(_HELD),
        overdue_ms=draw(_OVERDUE),
    )


@st.composite
def silenced(draw: st.DrawFn) -> tuple[Observation, Observation]:
    """An observation, and the same with more silence on some of its roads."""
    less = draw(observations())

    def more(now: float, silences: st.SearchStrategy[float]) -> float:
        return max(now, draw(silences)) if draw(st.booleans()) else now

    nodes: dict[NodeName, NodeSeen] = {
        name: replace(
            node,
            rescue_silent_ms=more(node.rescue_silent_ms, _RESCUE),
            command_silent_ms=more(node.command_silent_ms, _COMMAND),
            agent_silent_ms=(
                None if node.agent_silent_ms is None else more(node.agent_silent_ms, _AGENT)
            ),
        )
        for name, node in less.nodes.items()
    }
    changed: dict[str, Any] = {
        "held_ms": more(less.held_ms, _HELD),
        "overdue_ms": more(less.overdue_ms, _OVERDUE),
    }
    if less.link_silent_ms is not None:
        changed["link_silent_ms"] = more(less.link_silent_ms, _LINK)
    if less.unacked_ms is not None:
        changed["unacked_ms"] = more(less.unacked_ms, _UNACKED)
    return less, replace(less, nodes=nodes, **changed)

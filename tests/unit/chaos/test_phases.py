"""When faults may fall, and whether they fell there."""

from __future__ import annotations

import itertools

import pytest

from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.chaos.scenario.phases import Phases, missed
from coloctl.chaos.scenario.values import When

_seconds = itertools.count(100)


def state(after: str, at_s: float | None = None) -> ObservedEvent:
    return ObservedEvent(at_s or next(_seconds), "STATE_CHANGED", {"before": "", "after": after})


def checkpoint(phase: str, at_s: float | None = None, node: str = "a") -> ObservedEvent:
    return ObservedEvent(
        at_s or next(_seconds), "CHECKPOINT", {"phase": phase, "node": node, "count": 1}
    )


def of_node(node: str, event: str, at_s: float | None = None) -> ObservedEvent:
    return ObservedEvent(
        at_s or next(_seconds), "NODE_EVENT", {"node": node, "event": event, "data": {}}
    )


def test_moments_come_with_their_events() -> None:
    phases = Phases()
    assert phases.hear(state("resync")) == {When.RESYNC} == phases.now()
    assert phases.hear(state("migrating")) == {When.MIGRATING}
    assert phases.hear(of_node("b", "STOP")) == set()
    assert phases.hear(state("colo")) == set() == phases.now()
    for _ in range(2):
        assert phases.hear(checkpoint("begin")) == set()
        phases.hear(checkpoint("end"))
    assert phases.hear(checkpoint("begin")) == {When.CHECKPOINT}
    assert phases.hear(of_node("a", "STOP")) == set()
    assert phases.hear(of_node("b", "STOP")) == {When.VMSTATE_LOAD}
    assert phases.hear(checkpoint("end")) == {When.STEADY} == phases.now()
    assert phases.hear(state("failover")) == {When.FAILOVER} == phases.now()
    assert phases.hear(state("failed")) == {When.FAILED} == phases.now()
    assert phases.over


def test_a_pair_that_was_struck_is_not_steady_until_it_has_been_again() -> None:
    phases = Phases()
    phases.hear(state("colo"))
    for _ in range(2):
        phases.hear(checkpoint("begin"))
        phases.hear(checkpoint("end"))
    assert phases.steady
    phases.fault_injected()
    assert not phases.steady


@pytest.mark.parametrize(
    ("when", "begin", "end"),
    [
        (When.CHECKPOINT, checkpoint("begin", 1.0), checkpoint("end", 2.0)),
        (When.VMSTATE_LOAD, of_node("b", "STOP", 1.0), of_node("b", "RESUME", 2.0)),
        (When.RESYNC, state("resync", 1.0), state("migrating", 2.0)),
        (When.FAILOVER, state("failover", 1.0), state("unprotected", 2.0)),
        (When.ALONE, state("unprotected", 1.0), state("resync", 2.0)),
        (When.STEADY, checkpoint("end", 1.0), state("failover", 2.0)),
    ],
)
def test_a_blow_that_came_too_late(when: When, begin: ObservedEvent, end: ObservedEvent) -> None:
    heard = [begin, end]
    assert missed(when, begin, 1.5, heard) == ""
    assert "500.0 ms after the" in missed(when, begin, 2.5, heard)
    assert missed(None, None, 2.5, heard) == ""


def test_the_other_node_does_not_end_a_load() -> None:
    begin = of_node("b", "STOP", 1.0)
    heard = [begin, of_node("a", "RESUME", 1.2)]
    assert missed(When.VMSTATE_LOAD, begin, 1.5, heard) == ""


def test_a_checkpoint_that_is_heard_of_late_is_no_moment() -> None:
    begin = checkpoint("begin", 1.0)
    assert not Phases.gone_by(When.CHECKPOINT, begin, 1.005)
    assert Phases.gone_by(When.CHECKPOINT, begin, 1.1)
    assert not Phases.gone_by(When.STEADY, begin, 9.0)


def test_a_moment_whose_end_was_heard_already_is_none() -> None:
    load, over = of_node("b", "STOP", 1.0), of_node("b", "RESUME", 1.002)
    assert not Phases.gone_by(When.VMSTATE_LOAD, load, 1.003, [load, of_node("a", "RESUME", 1.001)])
    assert Phases.gone_by(When.VMSTATE_LOAD, load, 1.003, [load, over])

"""Every observation has one diagnosis; silence never flatters; what was recorded is found again."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from support.observations import (
    LIMITS,
    PRIMARY,
    SECONDARY,
    every_silence,
    every_unknown,
    observations,
    observe,
    silenced,
)

from coloctl.ha.analysis import RULES, diagnose, ranked
from coloctl.ha.decision import Action, decide
from coloctl.ha.monitoring_path import monitoring_paths
from coloctl.ha.stalled import SLOW_MS
from coloctl.model.observation import Diagnosis, Life, NodeSeen, Notice, Observation
from coloctl.model.pair import NodeName, Policy, Role, other
from coloctl.model.protection import Protection
from coloctl.model.revive import revive

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "analysis"


def test_every_combination_of_lives_roles_and_silences_has_one_diagnosis() -> None:
    found = set()
    for seen in every_silence():
        finding = diagnose(seen)
        found.add(finding.diagnosis)
        assert finding.evidence
        assert all(said.endswith(".") for said in finding.evidence)
        if finding.node is not None:
            assert seen.nodes[finding.node].role is not Role.NONE
    assert found >= {
        Diagnosis.HEALTHY,
        Diagnosis.PRIMARY_DEAD,
        Diagnosis.SECONDARY_DEAD,
        Diagnosis.PRIMARY_FROZEN,
        Diagnosis.SECONDARY_FROZEN,
        Diagnosis.HOST_UNREACHABLE,
        Diagnosis.LINK_BROKEN,
        Diagnosis.MONITOR_HUNG,
        Diagnosis.UNKNOWN,
    }


def test_every_combination_of_notices_and_stalls_has_one_diagnosis() -> None:
    found = set()
    several = [c for size in range(4) for c in itertools.combinations(Notice, size)]
    for notices, on, held, overdue in itertools.product(
        several, ("a", "b"), (1999.0, 2000.0), (3999.0, 4000.0)
    ):
        a = replace(PRIMARY, notices=notices if on == "a" else ())
        b = replace(SECONDARY, notices=notices if on == "b" else ())
        found.add(diagnose(observe(a, b, held_ms=held, overdue_ms=overdue)).diagnosis)
    assert found == {
        Diagnosis.HEALTHY,
        Diagnosis.GUEST_SHUTDOWN,
        Diagnosis.REPLICA_WRITE_ERROR,
        Diagnosis.LOCAL_DISK_ERROR,
        Diagnosis.GUEST_HELD,
        Diagnosis.LINK_BROKEN,
        Diagnosis.CHECKPOINT_STALLED,
        Diagnosis.GUEST_PANIC,
        Diagnosis.GUEST_RESET,
    }


def test_a_life_that_is_not_known_hides_no_cut_and_no_stalled_checkpoint() -> None:
    """Nor does it invent one: what is found does not depend on what the agent of a node reports."""
    found = set()
    for seen in every_unknown():
        finding = diagnose(seen)
        found.add(finding.diagnosis)
        assert finding.evidence and all(said.endswith(".") for said in finding.evidence)
        paths = dict.fromkeys("ab", 0.0) | {
            node: max(one.rescue_silent_ms, one.agent_silent_ms or 0.0)
            for node, one in seen.nodes.items()
            if one.role is not Role.NONE and one.life is Life.UNKNOWN
        }
        roles = {one.role: node for node, one in seen.nodes.items()}
        both = {Role.PRIMARY, Role.SECONDARY} <= roles.keys()
        cut = both and (seen.link_silent_ms or 0.0) >= LIMITS.link_ms
        left = both and Notice.COLO_EXIT in seen.nodes[roles[Role.PRIMARY]].notices
        stalled = both and seen.held_ms >= LIMITS.stall_ms
        worse = {Diagnosis.HOST_UNREACHABLE, Diagnosis.UNKNOWN}  # both silent, or nothing reaches
        unreached = [node for node, silent_ms in paths.items() if silent_ms >= LIMITS.silent_ms]
        if cut or left:
            assert finding.diagnosis is Diagnosis.LINK_BROKEN or (
                unreached and finding.diagnosis in worse
            )
        elif stalled:
            assert finding.diagnosis is Diagnosis.CHECKPOINT_STALLED or (
                unreached and seen.link_silent_ms is None and finding.diagnosis in worse
            )
        elif finding.diagnosis is Diagnosis.HEALTHY:
            assert not unreached
    assert found == {
        Diagnosis.HEALTHY,
        Diagnosis.HOST_UNREACHABLE,
        Diagnosis.LINK_BROKEN,
        Diagnosis.CHECKPOINT_STALLED,
        Diagnosis.UNKNOWN,
    }


def test_no_node_is_given_up_for_one_whose_machine_may_be_what_is_lost() -> None:
    """Whatever is found: the survivor's last report was sent after the link fell silent."""
    acted = 0
    for seen in every_unknown():
        decision = decide(diagnose(seen), seen, Policy(), paused=False)
        if decision.action is not Action.FAIL_OVER:
            continue
        acted += 1
        assert decision.lost is not None
        survivor = seen.nodes[other(decision.lost)]
        if survivor.life is Life.UNKNOWN:
            assert survivor.rescue_silent_ms < LIMITS.suspect_ms
            assert (survivor.agent_silent_ms or 0.0) < LIMITS.suspect_ms
    assert acted


@pytest.mark.parametrize(
    ("agent_ms", "delay_ms", "link_ms", "acts"),
    [
        (20.0, 1.0, 300.0, True),
        (240.0, 1.0, 300.0, False),  # its last report may be from before
        (20.0, 280.0, 300.0, False),  # it was on its way when the link fell silent
        (20.0, 280.0, 400.0, True),
        (399.0, 1.0, 400.0, False),
    ],
)
def test_a_primary_goes_on_alone_once_it_has_reported_after_the_link_fell_silent(
    agent_ms: float, delay_ms: float, link_ms: float, acts: bool
) -> None:
    """Its machine may have lost its power: then a secondary that lives must not be given up."""
    primary = replace(PRIMARY, agent_silent_ms=agent_ms, agent_delay_ms=delay_ms)
    seen = observe(primary, link_silent_ms=link_ms)
    finding = diagnose(seen)
    assert finding.diagnosis is Diagnosis.LINK_BROKEN
    decision = decide(finding, seen, Policy(), paused=False)
    expected = (Action.FAIL_OVER, "b") if acts else (Action.WAIT, None)
    assert (decision.action, decision.lost) == expected
    if not acts:
        assert "node a's machine since the link fell silent" in decision.reason


def test_an_agent_that_is_silent_alone_is_reported_and_nothing_is_done() -> None:
    alone = replace(SECONDARY, life=Life.UNKNOWN, agent_silent_ms=60_000.0)
    seen = observe(b=alone)
    finding = diagnose(seen)
    assert (finding.diagnosis, finding.node) == (Diagnosis.UNKNOWN, "b")
    assert finding.sentence() == (
        "The agent on node b's machine has reported nothing for 60000 ms (limit 400 ms); its QEMU "
        "runs on as far as the replication link and the checkpoints show."
    )
    assert decide(finding, seen, Policy(), paused=False).action is Action.REPORT
    away = replace(PRIMARY, life=Life.UNKNOWN, agent_silent_ms=60_000.0)
    assert diagnose(observe(away)).sentence().endswith("as far as the replication link shows.")
    assert (
        diagnose(observe(away, replace(SECONDARY, role=Role.NONE)))
        .sentence()
        .endswith("; whether its QEMU runs is not known.")
    )
    # Where the link is not watched the primary's checkpoints show that a secondary runs.
    unwatched = observe(b=alone, link_silent_ms=None)
    assert diagnose(unwatched).sentence().endswith("as far as the checkpoints show.")
    # Also while the primary's agent is late, and the link is not watched for that reason.
    late = replace(PRIMARY, life=Life.UNKNOWN, agent_silent_ms=LIMITS.silent_ms - 1)
    held = observe(late, alone, link_silent_ms=None)
    assert diagnose(held).diagnosis is Diagnosis.UNKNOWN
    assert decide(diagnose(held), held, Policy(), paused=False).action is Action.REPORT
    stalled = diagnose(replace(unwatched, held_ms=LIMITS.stall_ms))
    assert (stalled.diagnosis, stalled.node) == (Diagnosis.CHECKPOINT_STALLED, "b")
    # Nothing does before the first checkpoint, nor for a primary.
    for seen in (
        replace(unwatched, protection=Protection.MIGRATING),
        observe(away, link_silent_ms=None),
    ):
        assert diagnose(seen).diagnosis is Diagnosis.HOST_UNREACHABLE


@pytest.mark.parametrize("notice", [Notice.COLO_EXIT, Notice.GUEST_PANIC, Notice.GUEST_RESET])
def test_an_agent_that_is_silent_for_hours_hides_no_event_of_the_primary(notice: Notice) -> None:
    away = replace(SECONDARY, life=Life.UNKNOWN, agent_silent_ms=1e7)
    known = diagnose(observe(replace(PRIMARY, notices=(notice,))))
    assert known.diagnosis is not Diagnosis.HEALTHY
    seen = diagnose(observe(replace(PRIMARY, notices=(notice,)), away))
    assert seen.diagnosis is known.diagnosis


def test_a_checkpoint_that_waits_for_a_machine_out_of_reach_gives_up_that_one() -> None:
    """The primary's main loop waits in it; the other one's is not known to answer."""
    waiting = replace(PRIMARY, command_silent_ms=LIMITS.silent_ms)
    away = replace(SECONDARY, life=Life.UNKNOWN, agent_silent_ms=LIMITS.silent_ms)
    found = diagnose(observe(waiting, away, held_ms=LIMITS.stall_ms))
    assert (found.diagnosis, found.node) == (Diagnosis.CHECKPOINT_STALLED, "b")


@given(silenced())
def test_more_silence_never_looks_healthier_and_an_answer_never_worse(
    pair: tuple[Observation, Observation],
) -> None:
    answered, silent = pair
    assert ranked(silent)[0] <= ranked(answered)[0]


@given(observations())
def test_what_is_written_down_is_diagnosed_again(seen: Observation) -> None:
    read = revive(Observation, json.loads(json.dumps(seen.to_json())))
    assert read == seen
    assert diagnose(read) == diagnose(seen)


@given(observations())
def test_the_sides_of_a_pair_are_alike(seen: Observation) -> None:
    """What is found of node a would be found of node b: no node is favoured by its name."""
    mirrored = replace(seen, nodes={"a": seen.nodes["b"], "b": seen.nodes["a"]})
    here, there = ranked(seen), ranked(mirrored)
    assert here[0] == there[0]
    only_one = len([n for n in seen.nodes.values() if n.role is not Role.NONE]) == 1
    by_role = here[1].diagnosis not in (Diagnosis.UNKNOWN, Diagnosis.MONITOR_HUNG)
    if here[1].node is not None and (only_one or by_role):
        assert there[1].node == other(here[1].node)


def _beats() -> list[Any]:
    return [
        pytest.param(beat, id=f"{file.stem}-{number}")
        for file in sorted(GOLDEN.glob("*.json"))
        for number, beat in enumerate(json.loads(file.read_text())["beats"])
    ]


@pytest.mark.parametrize("beat", _beats())
def test_a_recorded_observation_replays_to_the_recorded_diagnosis(beat: dict[str, Any]) -> None:
    seen = revive(Observation, beat["observation"])
    finding = diagnose(seen)
    decision = decide(finding, seen, Policy(), paused=False, pair="web")
    assert {
        "diagnosis": finding.diagnosis,
        "node": finding.node,
        "evidence": list(finding.evidence),
        "action": decision.action,
        "lost": decision.lost,
        "reason": decision.reason,
    } == {key: value for key, value in beat.items() if key != "observation"}


def test_the_recorded_situations_show_every_diagnosis() -> None:
    assert {beat.values[0]["diagnosis"] for beat in _beats()} == set(Diagnosis)


def test_a_node_without_a_part_is_not_diagnosed() -> None:
    nobody = NodeSeen(Role.NONE, Life.DEAD, rescue_silent_ms=9999.0, notices=tuple(Notice))
    assert diagnose(observe(b=nobody)).diagnosis is Diagnosis.HEALTHY
    assert diagnose(observe(nobody, nobody)).diagnosis is Diagnosis.HEALTHY
    assert diagnose(replace(observe(), nodes={})).diagnosis is Diagnosis.HEALTHY


@pytest.mark.parametrize("node", ["a", "b"])
def test_the_secondarys_farewell_alone_proves_nothing(node: NodeName) -> None:
    """A primary that is being killed closes its sockets before its pidfd says that it is dead."""
    told: dict[NodeName, NodeSeen] = {"a": PRIMARY, "b": SECONDARY}
    told[node] = replace(told[node], notices=("colo-exit",))
    expected = Diagnosis.LINK_BROKEN if node == "a" else Diagnosis.HEALTHY
    assert diagnose(observe(told["a"], told["b"])).diagnosis is expected


def test_data_without_an_answer_is_a_broken_link_while_both_nodes_are_there() -> None:
    cut = replace(observe(unacked_ms=LIMITS.silent_ms), unacked_by="disk")
    found = diagnose(cut)
    assert (found.diagnosis, found.node) == (Diagnosis.LINK_BROKEN, None)
    assert found.sentence() == (
        "What goes to the other node's disk has had no answer for 400 ms (limit 400 ms), while the "
        "link carries all else and both nodes are there."
    )
    assert diagnose(observe(unacked_ms=LIMITS.silent_ms - 1)).diagnosis is Diagnosis.HEALTHY
    # The checkpoint that waits for it is named only where it is all that is seen.
    assert diagnose(replace(cut, held_ms=5000.0)).diagnosis is Diagnosis.LINK_BROKEN
    dead = replace(SECONDARY, life=Life.DEAD)
    assert diagnose(replace(cut, nodes={**cut.nodes, "b": dead})).diagnosis is (
        Diagnosis.SECONDARY_DEAD
    )


def test_every_monitoring_path_has_its_limit() -> None:
    attested = observe(replace(PRIMARY, life=Life.STOPPED, rescue_silent_ms=100.0))
    paths = {(path.name, path.node): path for path in monitoring_paths(attested)}
    assert {name for name, _ in paths} == {"rescue", "command", "link", "held", "overdue"}
    # The kernel attests the stop of node a alone, so its silence counts sooner.
    assert paths["rescue", "a"].limit_ms == LIMITS.suspect_ms
    assert paths["rescue", "b"].limit_ms == LIMITS.silent_ms
    remote = monitoring_paths(observe(replace(PRIMARY, agent_silent_ms=40.0)))
    (agent,) = (path for path in remote if path.name == "agent")
    assert (agent.node, agent.now_ms, agent.limit_ms) == ("a", 40.0, LIMITS.silent_ms)
    assert paths["rescue", "a"].now_ms == 100.0


def test_the_document_has_every_diagnosis_and_no_other() -> None:
    text = (ROOT / "docs" / "detection.md").read_text()
    header = "| diagnosis | seen how | what coloctl does |\n"
    lines = text.split(header, 1)[1].splitlines()[1:]
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    written = [line.strip("|").split("|")[0].strip().strip("`") for line in table]
    assert len(written) == len(set(written))
    assert set(written) == set(Diagnosis)


def test_no_rule_hides_another_for_ever() -> None:
    """Each rule is the first to hold in some observation."""
    held = {ranked(seen)[0] for seen in every_silence()}
    held |= {ranked(revive(Observation, beat.values[0]["observation"]))[0] for beat in _beats()}
    assert held == set(range(len(RULES) + 1))


def test_a_checkpoint_whose_memory_goes_over_is_slow_and_the_primary_does_not_hang() -> None:
    """Its main loop waits for the link; the figures are those of that checkpoint."""
    waits = replace(PRIMARY, command_silent_ms=LIMITS.silent_ms)
    seen = replace(
        observe(waits, SECONDARY), held_ms=LIMITS.stall_ms, sent_bytes=50_000_000, sent_idle_ms=80.0
    )
    assert diagnose(replace(seen, sent_bytes=0)).node == "a"
    assert diagnose(replace(seen, sent_idle_ms=LIMITS.silent_ms)).node == "a"
    assert diagnose(seen).diagnosis is not Diagnosis.CHECKPOINT_STALLED
    slow_ms = max(SLOW_MS, LIMITS.stall_ms)
    late = replace(seen, held_ms=slow_ms, sent_bytes=int(slow_ms * 10_000))
    found = diagnose(late)
    assert (found.diagnosis, found.node) == (Diagnosis.CHECKPOINT_STALLED, "b")
    assert f"changed more than {slow_ms / 100:.0f} MB" in found.sentence()
    assert "the replication link carries 10 MB/s" in found.sentence()

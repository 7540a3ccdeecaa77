"""What is done about a diagnosis: never more than what is proven and what can be survived."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.observations import LIMITS, PRIMARY, SECONDARY, every_silence, observations, observe

from coloctl.ha.analysis import diagnose
from coloctl.ha.decision import DECIDING_ACTS, Action, Decision, decide
from coloctl.ha.responses import RESPONSES
from coloctl.ha.triggers import triggers
from coloctl.model.observation import Diagnosis, Life, NodeSeen, Observation
from coloctl.model.pair import OnPanic, Policy, Role, other
from coloctl.model.protection import Protection

pytestmark = pytest.mark.unit

AUTOMATIC = Policy()
BY_HAND = Policy(auto_failover=False)


def decided(
    seen: Observation, policy: Policy = AUTOMATIC, *, paused: bool = False, acting: str = ""
) -> Decision:
    return decide(diagnose(seen), seen, policy, paused=paused, acting=acting, pair="web")


def test_the_tables_are_total() -> None:
    assert set(RESPONSES) == set(Protection) - {Protection.FAILED}
    for table in RESPONSES.values():
        assert set(table) == set(Diagnosis)


@given(observations(), st.booleans(), st.booleans(), st.sampled_from(["", "start", "stop", "set"]))
def test_whatever_is_given_up_the_other_answers_and_holds_the_guest(
    seen: Observation, paused: bool, automatic: bool, acting: str
) -> None:
    decision = decided(seen, Policy(auto_failover=automatic), paused=paused, acting=acting)
    if decision.action is Action.FAIL_OVER:
        assert automatic
        assert not paused
        assert acting not in DECIDING_ACTS
    assert_sound(seen, decision)


def test_so_it_is_in_every_state_and_combination_of_silences() -> None:
    for protection, seen in itertools.product(Protection, every_silence()):
        then = replace(seen, protection=protection)
        assert_sound(then, decided(then))


def assert_sound(seen: Observation, decision: Decision) -> None:
    """Nobody is given up without another who answers and misses nothing."""
    assert (decision.lost is not None) == (decision.action in (Action.FAIL_OVER, Action.ABANDON))
    assert bool(decision.reason) == (decision.action is not Action.NONE)
    if decision.action is Action.ABANDON:
        assert decision.lost is not None
        assert seen.nodes[decision.lost].role is Role.SECONDARY
        assert seen.protection not in (Protection.COLO, Protection.FAILOVER, Protection.FAILED)
    if decision.action is not Action.FAIL_OVER:
        return
    assert decision.lost is not None
    survivor, lost = seen.nodes[other(decision.lost)], seen.nodes[decision.lost]
    assert seen.protection in (Protection.COLO, Protection.FAILOVER)
    if lost.role is Role.NONE:  # it was fenced, and the decision could not be written
        assert seen.protection is Protection.FAILOVER
        assert survivor.role is not Role.NONE
    else:
        assert {survivor.role, lost.role} == {Role.PRIMARY, Role.SECONDARY}
    assert survivor.life not in (Life.DEAD, Life.STOPPED)
    assert survivor.rescue_silent_ms < LIMITS.silent_ms
    assert "local-write-error" not in survivor.notices
    if survivor.role is Role.SECONDARY:
        assert "replica-write-error" not in lost.notices
    assert "guest-shutdown" not in (lost if lost.role is Role.PRIMARY else survivor).notices


@given(observations())
def test_who_may_not_act_says_what_would_be_done_and_how(seen: Observation) -> None:
    would = decided(seen)
    for held_back in (decided(seen, paused=True), decided(seen, BY_HAND)):
        if would.action is Action.FAIL_OVER:
            assert would.lost is not None
            assert held_back.action is Action.WAIT
            assert f"`coloctl failover web --to {other(would.lost)}`" in held_back.reason
        elif would.action is not Action.ABANDON:
            assert held_back == would
    if would.action is Action.ABANDON:
        assert decided(seen, BY_HAND) == would
        assert "`coloctl resume web`" in decided(seen, paused=True).reason


@pytest.mark.parametrize("acting", sorted(DECIDING_ACTS))
@given(observations())
def test_an_act_that_decides_is_not_interfered_with(acting: str, seen: Observation) -> None:
    assert decided(seen, acting=acting).action is Action.WAIT


@given(observations())
def test_what_failed_is_left_to_an_operator(seen: Observation) -> None:
    decision = decided(replace(seen, protection=Protection.FAILED))
    assert decision.action is Action.WAIT
    assert "--force" in decision.reason


def test_a_replica_that_missed_a_write_is_never_promoted() -> None:
    told = replace(PRIMARY, notices=("replica-write-error",))
    assert decided(observe(told)).lost == "b"
    for gone in (
        replace(told, life=Life.DEAD),
        replace(told, life=Life.STOPPED, rescue_silent_ms=500.0),
        replace(told, notices=(*told.notices, "local-write-error")),
    ):
        decision = decided(observe(gone))
        assert decision.action is Action.WAIT
        assert "missed a write" in decision.reason
        assert "--force" in decision.reason


@pytest.mark.parametrize("survivor", [PRIMARY, SECONDARY])
def test_a_failover_that_could_not_be_written_goes_on_though_nobody_looks_at_the_dead_node(
    survivor: NodeSeen,
) -> None:
    left = observe(NodeSeen(), survivor, protection=Protection.FAILOVER)
    alone = replace(left, nodes={"b": survivor})
    for seen in (left, alone):
        decision = decided(seen)
        assert (decision.action, decision.lost) == (Action.FAIL_OVER, "a")
        assert decided(seen, paused=True).action is Action.WAIT
    silent = replace(survivor, rescue_silent_ms=5000.0)
    assert decided(replace(left, nodes={"b": silent})).action is Action.WAIT


def test_a_read_error_is_only_reported() -> None:
    assert decided(observe(replace(PRIMARY, notices=("local-read-error",)))).action is Action.REPORT


def test_the_last_of_two_deaths_ends_the_pair() -> None:
    dead = observe(replace(PRIMARY, life=Life.DEAD), replace(SECONDARY, life=Life.DEAD))
    for protection in (Protection.COLO, Protection.FAILOVER):
        assert decided(replace(dead, protection=protection)).action is Action.END


def test_a_guest_that_powers_off_ends_the_pair_before_and_after_its_qemu_ends() -> None:
    off = replace(PRIMARY, notices=("guest-shutdown",))
    for protection in (Protection.UNPROTECTED, Protection.MIGRATING, Protection.COLO):
        for primary in (off, replace(off, life=Life.DEAD)):
            assert decided(observe(primary, NodeSeen(), protection=protection)).action is Action.END
            if protection is not Protection.UNPROTECTED:
                assert decided(observe(primary, protection=protection)).action is Action.END


def test_an_unexpected_live_node_is_not_ended_with_a_dead_one() -> None:
    """Belief may lag behind by a beat: the other may have become the survivor just now."""
    stale = observe(replace(PRIMARY, life=Life.DEAD), protection=Protection.UNPROTECTED)
    assert decided(stale).action is Action.WAIT


@pytest.mark.parametrize("protection", [Protection.RESYNC, Protection.MIGRATING])
def test_a_secondary_in_the_making_is_given_up_and_the_primary_never(
    protection: Protection,
) -> None:
    frozen = {"life": Life.STOPPED, "rescue_silent_ms": 500.0}
    secondary = observe(b=replace(SECONDARY, **frozen), protection=protection)
    primary = observe(replace(PRIMARY, **frozen), protection=protection)
    dead = observe(replace(PRIMARY, life=Life.DEAD), protection=protection)
    cut = observe(protection=protection, link_silent_ms=500.0)
    full = replace(PRIMARY, notices=("local-write-error",))
    gone = {"life": Life.UNKNOWN, "rescue_silent_ms": 500.0, "command_silent_ms": 500.0}
    for about_primary in (full, replace(PRIMARY, **gone)):
        seen = observe(about_primary, protection=protection, link_silent_ms=None)
        assert decided(seen).action is Action.REPORT
        about_secondary = replace(about_primary, role=Role.SECONDARY)
        seen = observe(b=about_secondary, protection=protection, link_silent_ms=None)
        assert decided(seen).action is Action.ABANDON
    stalled = observe(
        replace(PRIMARY, command_silent_ms=2500.0), protection=protection, held_ms=2500.0
    )
    assert decided(stalled).lost == "b"
    assert decided(secondary) == Decision(Action.ABANDON, "b", decided(secondary).reason)
    assert decided(cut).action is Action.ABANDON
    assert decided(primary).action is Action.REPORT
    assert decided(dead).action is Action.END


@given(observations(), st.booleans())
def test_a_trigger_says_what_would_really_be_done(seen: Observation, paused: bool) -> None:
    for trigger in triggers(seen, AUTOMATIC, paused, pair="web"):
        json.dumps(trigger.to_json())
        assert (trigger.winner is not None) == (trigger.action is Action.FAIL_OVER)
        if trigger.winner is not None:
            assert trigger.lost == other(trigger.winner)
            assert not paused
        assert (trigger.now_ms is None) == (trigger.limit_ms is None)


def test_the_triggers_of_a_healthy_pair() -> None:
    told = {(t.path, t.happens): t for t in triggers(observe(), AUTOMATIC, False, pair="web")}
    assert told["process", "node a's process ends"].winner == "b"
    assert told["process", "node b's process ends"].winner == "a"
    link = next(trigger for (road, _), trigger in told.items() if road == "link")
    assert (link.now_ms, link.limit_ms, link.winner) == (0.0, LIMITS.link_ms, "a")
    assert "data" not in {road for road, _ in told}
    (data,) = (t for t in triggers(observe(unacked_ms=0.0), AUTOMATIC, False) if t.path == "data")
    assert (data.limit_ms, data.diagnosis, data.winner) == (
        LIMITS.silent_ms,
        Diagnosis.LINK_BROKEN,
        "a",
    )
    assert triggers(observe(replace(PRIMARY, role=Role.NONE), replace(SECONDARY, role=Role.NONE)),
                    AUTOMATIC, False) == ()  # fmt: skip


def said(*notices: str, protection: Protection = Protection.COLO, tcg: bool = False) -> Observation:
    """The primary's guest is the matter; ``tcg``: one that boots has to do that alone."""
    seen = observe(replace(PRIMARY, notices=notices), protection=protection)
    return replace(seen, boots_alone=tcg)


PANICS = [("guest-panic",), ("guest-panic", "guest-reset")]


@pytest.mark.parametrize("protection", [Protection.COLO, Protection.MIGRATING, Protection.RESYNC])
@pytest.mark.parametrize("notices", PANICS)
def test_a_panic_that_stops_the_pair_is_no_failover_even_when_the_guest_resets_itself(
    protection: Protection, notices: tuple[str, ...]
) -> None:
    for tcg in (False, True):
        seen = said(*notices, protection=protection, tcg=tcg)
        assert decided(seen, Policy(on_panic=OnPanic.STOP)).action is Action.END


@pytest.mark.parametrize("protection", [Protection.COLO, Protection.UNPROTECTED])
def test_a_guest_that_has_panicked_is_reset_once_and_only_where_that_was_asked_for(
    protection: Protection,
) -> None:
    restart = Policy(on_panic=OnPanic.RESTART)
    panicked = said("guest-panic", protection=protection)
    assert decided(panicked).action is Action.REPORT
    assert decided(panicked, restart).action is Action.RESTART
    assert decided(panicked, restart, paused=True).action is Action.REPORT
    again = said("guest-panic", "guest-reset", protection=protection)
    assert decided(again, restart).action is Action.REPORT


def test_a_panic_of_the_secondary_alone_decides_nothing() -> None:
    seen = observe(b=replace(SECONDARY, notices=("guest-panic", "guest-reset")))
    assert decided(seen, Policy(on_panic=OnPanic.STOP)).action is Action.NONE


def test_a_guest_that_boots_does_so_alone_where_its_secondary_would_not_survive() -> None:
    assert decided(said("guest-reset")).action is Action.REPORT
    decision = decided(said("guest-reset", tcg=True))
    assert (decision.action, decision.lost) == (Action.FAIL_OVER, "b")
    joining = decided(said("guest-reset", protection=Protection.MIGRATING, tcg=True))
    assert (joining.action, joining.lost) == (Action.ABANDON, "b")


def test_a_reset_gives_nobody_up_where_nobody_may_be() -> None:
    seen = said("guest-reset", tcg=True)
    assert decided(seen, paused=True).action is Action.REPORT
    assert decided(seen, BY_HAND).action is Action.REPORT


REMOTE_PRIMARY = replace(PRIMARY, agent_silent_ms=20.0, agent_delay_ms=1.0)
REMOTE_SECONDARY = replace(SECONDARY, agent_silent_ms=20.0, agent_delay_ms=1.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [(REMOTE_PRIMARY, REMOTE_SECONDARY), (PRIMARY, REMOTE_SECONDARY), (REMOTE_PRIMARY, SECONDARY)],
)
def test_what_the_loss_of_a_machine_or_of_its_agent_would_lead_to(a: NodeSeen, b: NodeSeen) -> None:
    told = {t.happens: t for t in triggers(observe(a, b), AUTOMATIC, False, pair="web")}
    for node, one in (("a", a), ("b", b)):
        agent = told.get(f"the agent on node {node}'s machine reports nothing")
        power = told.get(f"node {node}'s machine loses its power")
        if one.agent_silent_ms is None:
            assert agent is None and power is None
            continue
        assert agent is not None and power is not None
        assert (agent.diagnosis, agent.action) == (Diagnosis.UNKNOWN, Action.REPORT)
        assert (agent.now_ms, agent.limit_ms) == (20.0, 400.0)
        assert (power.diagnosis, power.action) == (Diagnosis.HOST_UNREACHABLE, Action.FAIL_OVER)
        assert (power.lost, power.winner) == (node, "b" if node == "a" else "a")


def test_of_a_machine_out_of_reach_only_what_would_be_seen_is_foretold() -> None:
    away = replace(REMOTE_SECONDARY, life=Life.UNKNOWN, agent_silent_ms=60_000.0)
    of_b = {
        t.happens: (t.diagnosis, t.action, t.winner)
        for t in triggers(observe(b=away), AUTOMATIC, False, pair="web")
        if t.node == "b" and t.path != "event"
    }
    assert of_b == {
        "node b's process ends": (Diagnosis.SECONDARY_DEAD, Action.FAIL_OVER, "a"),
        "node b's machine loses its power": (Diagnosis.HOST_UNREACHABLE, Action.FAIL_OVER, "a"),
    }

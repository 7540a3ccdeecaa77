"""The scenario that each bench runs: what it breaks, when, and what must hold."""

from __future__ import annotations

import pytest

from coloctl.bench import circles, failover, soak, stretches
from coloctl.bench.circles import CircleFault, CirclesPlan
from coloctl.bench.failover import Cause, FailoverPlan
from coloctl.bench.soak import SoakPlan
from coloctl.chaos.checks import CHECKS
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.run.environment import needs_services
from coloctl.chaos.scenario.schedule import schedule
from coloctl.chaos.scenario.values import Scenario, When
from coloctl.chaos.workloads import AppendsParams

pytestmark = pytest.mark.unit


def require_known(scenario: Scenario, *needs: str) -> None:
    """Require kinds, targets and checks that exist; nothing in it needs more than redis."""
    for fault in schedule(scenario, 1):
        assert fault.target in FAULTS[fault.kind].targets
        FAULTS[fault.kind].params.of(fault.params)
    for name, given in scenario.expect.items():
        CHECKS[name].params.of(given)
        assert CHECKS[name].needs <= set(needs)
    assert not needs_services(scenario)
    assert scenario.to_document()


@pytest.mark.parametrize(
    ("cause", "kind", "target", "loser"),
    [
        (Cause.KILL, "kill", "primary", "primary"),
        (Cause.FREEZE, "freeze", "primary", "primary"),
        (Cause.LINK, "cut", "replication", "secondary"),
        (Cause.SECONDARY_KILL, "kill", "secondary", "secondary"),
        (Cause.SECONDARY_FREEZE, "freeze", "secondary", "secondary"),
        (Cause.SECONDARY_POWER_OFF, "machine-crash", "secondary", "secondary"),
    ],
)
def test_a_cause_is_one_fault_that_is_healed_once_it_was_noticed(
    cause: Cause, kind: str, target: str, loser: str
) -> None:
    scenario = failover.scenario_of(FailoverPlan(cause), 500)
    require_known(scenario)
    (fault,) = schedule(scenario, 1001)
    assert (fault.kind, fault.target, cause.loser) == (kind, target, loser)
    assert fault.duration_s is None and scenario.notice_s == failover.NOTICE_S
    assert scenario.pair["policy"] == {"auto_reprotect": False}


def test_every_cause_is_tested() -> None:
    assert len(Cause) == 6


def test_a_fault_falls_anywhere_in_a_period_and_an_early_one_in_the_first_second() -> None:
    late = failover.scenario_of(FailoverPlan(Cause.KILL, clients=3), 200)
    early = failover.scenario_of(FailoverPlan(Cause.KILL, early=True), 200)
    moments = [[schedule(one, seed)[0].at_s for seed in range(200)] for one in (late, early)]
    assert max(moments[0]) <= 0.2 < max(moments[1]) <= 1.0
    assert min(moments[0]) < 0.05 and min(moments[1]) < 0.1
    assert schedule(late, 1001) == schedule(late, 1001)
    steady = late.steady_state
    assert (steady.checkpoints_min, steady.acknowledged_min) == (failover.CHECKPOINTS, 30)
    assert early.steady_state.checkpoints_min == 0


def test_a_soak_breaks_nothing_and_protects_again() -> None:
    scenario = soak.scenario_of(SoakPlan(clients=2))
    require_known(scenario)
    assert scenario.faults == ()
    assert scenario.pair["policy"] == {"auto_reprotect": True}
    assert scenario.workloads[0].clients == 2


def test_each_circle_begins_when_the_pair_is_steady_after_the_one_before() -> None:
    plan = CirclesPlan((CircleFault.PRIMARY, CircleFault.SECONDARY, CircleFault.SWITCHOVER), 2)
    scenario = circles.scenario_of(plan, 250)
    require_known(scenario, "inventory")
    faults = schedule(scenario, 1)
    assert [(one.kind, one.target) for one in faults] == [
        ("kill", "primary"),
        ("kill", "secondary"),
        ("operator", "pair"),
    ]
    assert [one.after for one in faults] == ["", "circle-1", "circle-2"]
    assert all(one.when is When.STEADY and 0.5 <= one.then_s <= 1.0 for one in faults)
    assert scenario.pair["policy"] == {"auto_reprotect": True}


def test_a_client_comes_in_each_phase_of_each_circle() -> None:
    """A switchover leaves the guest alone for no longer than it takes."""
    plan = CirclesPlan((CircleFault.SECONDARY, CircleFault.SWITCHOVER), clients=2)
    first, *guests = circles.scenario_of(plan, 500).workloads
    assert (first.clients, first.begins) == (2, "booted")
    assert {(one.begins, one.after) for one in guests} == {
        ("steady", ""),
        ("unprotected", "circle-1"),
        ("migrating", "circle-1"),
        ("steady", "circle-1"),
        ("migrating", "circle-2"),
    }
    assert [one.numbered_from for one in guests] == [2, 3, 4, 5, 6]


def test_stretches_begin_without_protection_and_break_nothing() -> None:
    scenario = stretches.scenario_of(3, AppendsParams(burst_s=1.0, idle_s=2.0))
    require_known(scenario)
    assert scenario.faults == ()
    assert (scenario.steady_state.protection, scenario.settle_s) == ("unprotected", 0.0)
    assert scenario.workloads[0].params == AppendsParams(burst_s=1.0, idle_s=2.0)

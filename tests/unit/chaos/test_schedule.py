"""The plan of a run: the same for the same seed, and smaller ones made of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support import runs

from coloctl.chaos.scenario.schedule import leave_out, schedule, smaller, workloads
from coloctl.chaos.scenario.values import (
    FaultChoice,
    FaultSpec,
    Scenario,
    ScheduledFault,
    When,
    Workload,
)

KILL = FaultChoice(kind="kill", target="primary")
FREEZE = FaultChoice(kind="freeze", target="secondary", duration_s=(1.0, 3.0))


def scenario(*faults: FaultSpec) -> Scenario:
    return runs.SCENARIO.model_copy(update={"faults": faults})


CIRCLES = FaultSpec(name="any", random=(KILL, FREEZE), at_s=(1.0, 2.0), every_s=(3.0, 4.0), times=5)
LAST = FaultSpec(name="last", kind="kill", target="primary", at_s=(0.5, 0.5), after="any")


@given(st.integers(0, 2**32))
def test_a_seed_decides_everything(seed: int) -> None:
    story = scenario(CIRCLES, LAST)
    plan = schedule(story, seed)
    assert plan == schedule(story, seed)
    assert [one.name for one in plan] == ["any.1", "any.2", "any.3", "any.4", "any.5", "last"]
    assert [one.after for one in plan] == ["", "any.1", "any.2", "any.3", "any.4", "any.5"]
    assert 1.0 <= plan[0].at_s <= 2.0
    assert all(3.0 <= one.at_s <= 4.0 for one in plan[1:5])
    for one in plan:
        assert (one.duration_s is None) == (one.kind == "kill")
        assert one.duration_s is None or 1.0 <= one.duration_s <= 3.0


def test_seeds_differ() -> None:
    plans = {str(schedule(scenario(CIRCLES), seed)) for seed in range(20)}
    assert len(plans) == 20


def test_a_fault_that_is_left_out_changes_no_other() -> None:
    alone = FaultSpec(name="alone", random=(KILL, FREEZE), at_s=(0.0, 9.0))
    both = schedule(scenario(alone, CIRCLES), 3)
    assert schedule(scenario(alone), 3) == both[:1]


def chain(count: int) -> tuple[ScheduledFault, ...]:
    return tuple(
        ScheduledFault(f"f{n}", "kill", "primary", 4.0, after=f"f{n - 1}" if n else "")
        for n in range(count)
    )


@given(st.integers(2, 12))
def test_smaller_plans_are_smaller_and_whole(count: int) -> None:
    plan = chain(count)
    for less in smaller(plan):
        names = {one.name for one in less.plan}
        assert less.plan and less.plan != plan
        assert len(less.plan) < count or sum(p.at_s for p in less.plan) < sum(p.at_s for p in plan)
        assert all(not one.after or one.after in names for one in less.plan)


def test_whoever_waited_for_what_is_gone_waits_for_what_that_waited_for() -> None:
    plan = chain(4)
    assert [one.after for one in leave_out(plan, plan[1:3])] == ["", "f0"]
    assert [one.after for one in leave_out(plan, plan[:1])] == ["", "f1", "f2"]


def test_times_are_halved_when_no_fault_can_go() -> None:
    (one,) = chain(1)
    lasting = replace(one, duration_s=2.0)
    assert [less.plan[0] for less in smaller((lasting,))] == [
        replace(lasting, duration_s=1.0),
        replace(lasting, at_s=2.0),
    ]


@given(st.integers(0, 2**32))
def test_a_time_after_a_moment_is_within_its_span(seed: int) -> None:
    later = FaultSpec(name="l", kind="kill", target="a", when=When.STEADY, then_s=(0.1, 0.5))
    (one,) = schedule(scenario(later), seed)
    assert 0.1 <= one.then_s <= 0.5 and one.at_s == 0.0
    assert FaultSpec.of(one).then_s == (one.then_s, one.then_s)


def test_clients_come_after_the_last_fault_of_that_name() -> None:
    late = Workload(kind="http", begins="steady", after="any")
    found = scenario(CIRCLES, LAST).model_copy(update={"workloads": (late,)})
    plan = schedule(found, 1)
    assert [one.after for one in workloads(found, plan)] == ["any.5"]
    assert [one.after for one in workloads(found, plan[:2])] == ["any.2"]
    assert [one.after for one in workloads(found, plan[5:])] == [""]

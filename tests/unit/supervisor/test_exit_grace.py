"""The end of a QEMU is named as the cause, also where its peer speaks before the kernel does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakeclock import FakeClock
from support.fakes import Log
from support.observations import LIMITS, PRIMARY, SECONDARY, observe
from test_reactor import becomes, causes, lose, watched

from coloctl.ha.analysis import diagnose
from coloctl.model.observation import Diagnosis, Life, NodeSeen
from coloctl.model.pair import NODES, NodeName, other
from coloctl.model.protection import Protection
from coloctl.supervisor import exit_grace
from coloctl.supervisor.exit_grace import DYING_S, NOTICE_S, ExitGrace

pytestmark = pytest.mark.unit

LEFT = replace(PRIMARY, notices=("colo-exit",))
MISSED = replace(PRIMARY, notices=("replica-write-error",))


def grace(clock: FakeClock, *dying: NodeName) -> ExitGrace:
    return ExitGrace(clock, lambda node: node in dying)


@pytest.mark.parametrize("primary", [LEFT, MISSED], ids=["left", "missed"])
def test_what_one_side_says_of_the_other_is_believed_a_moment_later(primary: NodeSeen) -> None:
    clock = FakeClock()
    seen, endings = observe(primary), grace(clock)
    assert endings.near(seen, diagnose(seen))
    clock.advance(NOTICE_S / 2)
    assert endings.near(seen, diagnose(seen))
    clock.advance(NOTICE_S)
    assert not endings.near(seen, diagnose(seen))
    assert endings.cause(seen, diagnose(seen), "b") is diagnose(seen).diagnosis


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("primary", [LEFT, MISSED], ids=["left", "missed"])
def test_one_that_is_dying_is_waited_for_and_is_named_dead_after_that(
    primary: NodeSeen, node: NodeName
) -> None:
    """Whichever it is: where the primary dies, its peer is not the one to give up."""
    clock = FakeClock()
    seen, endings = observe(primary), grace(clock, node)
    assert endings.near(seen, diagnose(seen))
    clock.advance((NOTICE_S + DYING_S) / 2)
    assert endings.near(seen, diagnose(seen))
    clock.advance(DYING_S)
    assert not endings.near(seen, diagnose(seen))
    dead = Diagnosis.PRIMARY_DEAD if node == "a" else Diagnosis.SECONDARY_DEAD
    assert endings.cause(seen, diagnose(seen), node) is dead
    assert endings.cause(seen, diagnose(seen), other(node)) is diagnose(seen).diagnosis


def test_a_link_that_is_silent_for_its_time_needs_no_second_look() -> None:
    seen = replace(observe(LEFT), link_silent_ms=LIMITS.link_ms)
    assert diagnose(seen).diagnosis is Diagnosis.LINK_BROKEN
    endings = grace(FakeClock(), "b")
    assert not endings.near(seen, diagnose(seen))
    assert endings.cause(seen, diagnose(seen), "b") is Diagnosis.LINK_BROKEN


def test_no_other_finding_is_renamed() -> None:
    seen = observe(replace(PRIMARY, life=Life.DEAD), SECONDARY)
    assert grace(FakeClock(), "b").cause(seen, diagnose(seen), "b") is Diagnosis.PRIMARY_DEAD


def test_every_moment_has_its_own_beginning() -> None:
    clock = FakeClock()
    endings, seen, well = grace(clock), observe(LEFT), observe(PRIMARY, SECONDARY)
    endings.near(seen, diagnose(seen))
    clock.advance(2 * NOTICE_S)
    assert not endings.near(well, diagnose(well))
    assert endings.near(seen, diagnose(seen))


def failed_over(log: Log) -> str:
    (told,) = [line for line in log if line.startswith("FAILED_OVER")]
    return told


async def test_a_secondary_whose_death_is_reported_before_its_connections_is_named_dead(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path) as (state, a, b, log):
        lose(b, "dead")
        a.event("COLO_EXIT", mode="primary", reason="error")
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert "secondary-dead" in failed_over(log)


@pytest.mark.parametrize("shown", ["before any thread shows it", "by its threads"])
async def test_a_secondary_whose_death_is_heard_of_after_its_connections_is_named_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    """The time of grace is long here: the order of both reports matters, not their distance."""
    by_threads = shown == "by its threads"
    monkeypatch.setattr(exit_grace, "DYING_S" if by_threads else "NOTICE_S", 60.0)
    if by_threads:
        monkeypatch.setattr(exit_grace, "NOTICE_S", 0.0)

    async with watched(tmp_path) as (state, a, b, log):
        b.process.is_dying = by_threads
        a.event("COLO_EXIT", mode="primary", reason="error")
        await becomes(lambda: state.finding.diagnosis is Diagnosis.LINK_BROKEN)
        lose(b, "dead")
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert "secondary-dead" in failed_over(log)
        assert "secondary-dead" in causes(log)


@pytest.mark.parametrize("dying", [True, False])
async def test_without_a_report_in_time_the_cause_is_what_its_threads_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dying: bool
) -> None:
    for name in ("NOTICE_S", "DYING_S"):
        monkeypatch.setattr(exit_grace, name, 0.0)
    async with watched(tmp_path) as (state, a, b, log):
        b.process.is_dying = dying
        a.event("COLO_EXIT", mode="primary", reason="error")
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert ("secondary-dead" if dying else "link-broken") in failed_over(log)

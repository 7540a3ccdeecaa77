"""The end of a QEMU is named as the cause, also where its peer speaks before the kernel does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakeclock import FakeClock
from support.observations import LIMITS, PRIMARY, SECONDARY, observe
from test_reactor import becomes, causes, lose, watched

from coloctl.ha.analysis import diagnose
from coloctl.model.observation import Diagnosis
from coloctl.model.protection import Protection
from coloctl.supervisor import exit_grace
from coloctl.supervisor.exit_grace import DYING_S, ExitGrace

pytestmark = pytest.mark.unit

LEFT = replace(PRIMARY, notices=("colo-exit",))
MISSED = replace(PRIMARY, notices=("replica-write-error",))


@pytest.mark.parametrize("primary", [LEFT, MISSED], ids=["left", "missed"])
def test_what_one_side_says_of_the_other_is_believed_a_moment_later(primary: object) -> None:
    clock = FakeClock()
    seen, endings = observe(primary), ExitGrace(clock)  # type: ignore[arg-type]
    assert endings.near(seen, diagnose(seen))
    clock.advance(DYING_S / 2)
    assert endings.near(seen, diagnose(seen))
    clock.advance(DYING_S)
    assert not endings.near(seen, diagnose(seen))


def test_a_link_that_is_silent_for_its_time_needs_no_second_look() -> None:
    seen = replace(observe(LEFT), link_silent_ms=LIMITS.link_ms)
    assert diagnose(seen).diagnosis is Diagnosis.LINK_BROKEN
    assert not ExitGrace(FakeClock()).near(seen, diagnose(seen))


def test_every_moment_has_its_own_beginning() -> None:
    clock = FakeClock()
    endings, seen, well = ExitGrace(clock), observe(LEFT), observe(PRIMARY, SECONDARY)
    endings.near(seen, diagnose(seen))
    clock.advance(2 * DYING_S)
    assert not endings.near(well, diagnose(well))
    assert endings.near(seen, diagnose(seen))


async def test_a_secondary_whose_death_is_heard_of_after_its_connections_is_named_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of grace is long here: the order of both reports matters, not their distance."""
    monkeypatch.setattr(exit_grace, "DYING_S", 60.0)

    async with watched(tmp_path) as (state, a, b, log):
        a.event("COLO_EXIT", mode="primary", reason="error")
        await becomes(lambda: state.finding.diagnosis is Diagnosis.LINK_BROKEN)
        lose(b, "dead")
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        (told,) = [line for line in log if line.startswith("FAILED_OVER")]
        assert "secondary-dead" in told
        assert "secondary-dead" in causes(log)

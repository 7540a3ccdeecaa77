"""Limits grow with what a pair has shown, and no checkpoint like those seen ever reaches one."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.ha.limits import PAUSES, SEEN_ENOUGH, Shown, limits_of
from coloctl.model.pair import DetectionSpec
from coloctl.model.protection import Protection

pytestmark = pytest.mark.unit

SUSPECTS = st.integers(20, 60_000).map(lambda ms: DetectionSpec(20, ms))
PAUSES_MS = st.floats(0, 60_000)
MEMORY = st.integers(64, 1 << 20)
COUNTS = st.integers(0, 10_000)


@given(SUSPECTS, st.sampled_from(Protection), st.builds(Shown, COUNTS, PAUSES_MS), MEMORY)
def test_a_checkpoint_like_the_slowest_seen_is_far_below_every_limit_it_can_reach(
    detection: DetectionSpec,
    protection: Protection,
    shown: Shown,
    memory_mib: int,
) -> None:
    limits = limits_of(detection, protection, shown, memory_mib=memory_mib)
    slowest = max(PAUSES * shown.longest_pause_ms, 1000 * memory_mib / 110)
    for limit_ms in (limits.stall_ms, limits.command_ms, limits.overdue_ms):
        assert limit_ms >= slowest
    assert limits.suspect_ms >= detection.suspect_after_ms
    assert limits.link_ms >= detection.suspect_after_ms
    assert limits.silent_ms >= 8 * detection.suspect_after_ms


@given(SUSPECTS, COUNTS, PAUSES_MS, PAUSES_MS, MEMORY)
def test_what_is_known_less_of_or_harder_at_work_may_be_silent_for_longer(
    detection: DetectionSpec, count: int, pause_ms: float, more_ms: float, memory_mib: int
) -> None:
    def of(
        protection: Protection = Protection.COLO,
        seen: int = count,
        longest_ms: float = pause_ms,
        **more: bool,
    ) -> tuple[float, ...]:
        shown = Shown(seen, longest_ms)
        return astuple(limits_of(detection, protection, shown, memory_mib=memory_mib, **more))

    def at_most(less: tuple[float, ...], more: tuple[float, ...]) -> bool:
        return all(one <= other for one, other in zip(less, more, strict=True))

    assert at_most(of(), of(Protection.MIGRATING))
    assert at_most(of(), of(Protection.RESYNC))
    assert at_most(of(), of(unsettled=True))
    assert at_most(of(seen=SEEN_ENOUGH), of(seen=0))
    assert at_most(of(), of(longest_ms=pause_ms + more_ms))


def test_the_roads_that_a_checkpoint_does_not_block_stay_as_asked_for_in_colo() -> None:
    limits = limits_of(DetectionSpec(20, 120), Protection.COLO, Shown(0, 0.0), unsettled=True)
    assert (limits.suspect_ms, limits.link_ms) == (120, 120)
    assert limits.silent_ms == 1000

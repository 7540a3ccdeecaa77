"""The log of merges: lines as QEMU 7.2 and 11.1 wrote them, whole, mixed, and cut short."""

from __future__ import annotations

import pytest

from coloctl.machine import merge_log

FIRST, SECOND, OTHER = "0x55555e309090", "0x55555e93ed90", "0x7fd67006e9f0"
STAMPS = ("7595@1795996673.005651:", "2026-11-29T23:57:59.325496Z ")
WHOLE = ("created", "running", "ready", "waiting", "pending", "concluded", "null")
FAILED = ("created", "running", "aborting", "aborting", "concluded", "null")


def lines(job: str, *states: str, stamp: str = STAMPS[0]) -> str:
    """What QEMU writes while a job goes through these states."""
    pairs = zip(("undefined", *states), states, strict=False)
    text = "job_state_transition job {} (ret: 0) attempting allowed transition ({}-->{})\n"
    return "".join(stamp + text.format(job, before, after) for before, after in pairs)


@pytest.mark.parametrize("stamp", STAMPS)
@pytest.mark.parametrize("count", range(1, len(WHOLE) + 1))
def test_an_image_has_everything_from_waiting_on(stamp: str, count: int) -> None:
    states = WHOLE[:count]
    found = merge_log.merged(lines(FIRST, *states, stamp=stamp), 1)
    assert found == ({0} if "waiting" in states else set())


@pytest.mark.parametrize("count", range(1, len(FAILED) + 1))
def test_a_merge_that_fails_is_none(count: int) -> None:
    assert merge_log.merged(lines(FIRST, *FAILED[:count]), 1) == set()


def test_one_that_fails_after_waiting_is_none() -> None:
    assert merge_log.merged(lines(FIRST, *WHOLE[:5], "aborting"), 1) == set()


@pytest.mark.parametrize("second", [SECOND, FIRST])
def test_the_last_disk_is_merged_first(second: str) -> None:
    """Its job's address may be that of the next one."""
    assert merge_log.merged(lines(FIRST, *WHOLE), 2) == {1}
    assert merge_log.merged(lines(FIRST, *WHOLE) + lines(second, *FAILED), 2) == {1}
    assert merge_log.merged(lines(FIRST, *FAILED) + lines(second, *WHOLE), 2) == {0}
    assert merge_log.merged(lines(FIRST, *WHOLE) + lines(second, *WHOLE), 2) == {0, 1}


def test_jobs_that_began_before_the_log_do_not_count() -> None:
    before = lines(OTHER, "paused", "running", "aborting", "concluded", "null").splitlines(True)[1:]
    assert merge_log.merged("".join(before) + lines(FIRST, *WHOLE), 1) == {0}
    assert merge_log.merged("".join(before), 1) is None


def test_a_log_without_a_merge_or_with_others_shows_nothing() -> None:
    assert merge_log.merged("", 1) is None
    assert merge_log.merged("Something else.\n", 1) is None
    assert merge_log.merged(lines(FIRST, *WHOLE) + lines(SECOND, *WHOLE), 1) is None


def test_a_line_that_was_cut_short_does_not_count() -> None:
    whole = lines(FIRST, *WHOLE[:4])
    for cut in range(1, len(lines(FIRST, "waiting"))):
        assert merge_log.merged(whole[: -1 - cut], 1) == set()

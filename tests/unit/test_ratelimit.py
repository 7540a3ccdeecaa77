"""A rate limit lets a burst through at once and then so much per second, and saves no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.ratelimit import RateLimit

pytestmark = pytest.mark.unit


class Bucket:
    """A token bucket that counts its tokens: the plain way to say the same."""

    def __init__(self, burst: int, per_second: int) -> None:
        self.burst, self.per_second = burst, per_second
        self.tokens, self.at_s = float(burst), 0.0

    def take(self, now_s: float) -> bool:
        passed = (now_s - self.at_s) * self.per_second
        self.tokens, self.at_s = min(float(self.burst), self.tokens + passed), now_s
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@given(
    burst=st.integers(1, 20),
    rate=st.sampled_from([1, 2, 4, 8, 64]),
    steps=st.lists(st.integers(0, 64), max_size=200),
)
def test_it_lets_through_what_a_counted_bucket_would(
    burst: int, rate: int, steps: list[int]
) -> None:
    limit, bucket, now_s = RateLimit(burst, rate), Bucket(burst, rate), 0.0
    for step in steps:
        now_s += step / 64  # exact in binary, so both ways are compared without rounding
        allowed = limit.ready(now_s)
        assert limit.take(now_s) is allowed is bucket.take(now_s)


def test_a_burst_is_allowed_and_then_so_many_a_second() -> None:
    limit = RateLimit(burst=3, per_second=10)
    assert [limit.wait_s(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert [round(limit.wait_s(100.0), 6) for _ in range(2)] == [0.1, 0.2]
    assert limit.wait_s(200.0) == 0.0  # unused capacity is not saved up beyond the burst
    assert [limit.wait_s(200.0) for _ in range(2)] == [0.0, 0.0]
    assert round(limit.wait_s(200.0), 6) == 0.1


def test_without_a_burst_each_amount_waits_for_its_own_time() -> None:
    limit = RateLimit(burst=0, per_second=1000)
    assert limit.wait_s(100.0, 500) == pytest.approx(0.5)
    assert limit.wait_s(100.5, 500) == pytest.approx(0.5)
    assert limit.wait_s(160.0, 500) == pytest.approx(0.5)


@pytest.mark.parametrize("began_s", [0.0, 12_345.678, 9_876_543.21])
def test_no_token_is_lost_to_rounding(began_s: float) -> None:
    limit = RateLimit(burst=10, per_second=0.1)
    assert all(limit.take(began_s) for _ in range(10))
    assert not limit.take(began_s)
    assert limit.take(began_s + 10.0)
    assert not limit.take(began_s + 10.0)

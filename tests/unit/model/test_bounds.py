"""Bounds stand at the fields of a pair's description and are found there."""

from __future__ import annotations

from dataclasses import fields

import pytest

from coloctl.model.bounds import RATE_MAX, Between, bounds
from coloctl.model.pair import CheckpointSpec, DetectionSpec, Policy

pytestmark = pytest.mark.unit


def test_a_bound_is_found_at_its_field() -> None:
    assert bounds(CheckpointSpec, "max_queue_size") == Between(1, 1_000_000)
    assert bounds(DetectionSpec, "suspect_after_ms") == Between(2, 600_000)
    assert bounds(Policy, "mirror_rate") == Between(0, RATE_MAX)


@pytest.mark.parametrize("name", ["mode", "guard_first_connection", "no_such_field"])
def test_a_field_without_bounds_is_named(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        bounds(CheckpointSpec, name)


@pytest.mark.parametrize("owner", [CheckpointSpec, DetectionSpec, Policy])
def test_every_default_lies_within_its_bounds(owner: type) -> None:
    found = 0
    for one in fields(owner):
        try:
            between = bounds(owner, one.name)
        except KeyError:
            continue
        found += 1
        assert between.ge <= one.default <= between.le, one.name
    assert found

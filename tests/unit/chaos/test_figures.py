"""Many measurements in few numbers."""

from __future__ import annotations

import pytest

from coloctl.chaos.run.figures import summary

pytestmark = pytest.mark.unit


def test_a_summary_leaves_out_what_nobody_knows() -> None:
    assert summary([None, 2.0, 1.0, None]) == {"n": 2, "p50": 1.0, "p99": 2.0, "max": 2.0}
    assert summary([]) == {"n": 0, "p50": None, "p99": None, "max": None}

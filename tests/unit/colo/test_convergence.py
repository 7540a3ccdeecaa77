"""Goal: a guest is held only for a rest that goes over in time; otherwise the figures are given."""

from __future__ import annotations

from typing import Any

import pytest

from coloctl.clock import Deadline
from coloctl.colo import convergence
from coloctl.colo.convergence import flow
from coloctl.errors import DeadlineMissed, MigrationFailed

pytestmark = pytest.mark.unit


def answer(passes: int, left_mb: float, changed_mb: float, mbps: float) -> dict[str, Any]:
    """As QEMU 11.1 answers `query-migrate`, cut to the members that count."""
    return {
        "status": "active",
        "ram": {
            "dirty-sync-count": passes,
            "remaining": int(left_mb * 1e6),
            "dirty-pages-rate": int(changed_mb * 1e6 / 4096),
            "page-size": 4096,
            "mbps": mbps,
        },
    }


@pytest.mark.parametrize(
    ("passes", "left_mb", "mbps", "first_pass", "too_slow"),
    [
        (1, 60_000, 940, True, True),  # a large guest: its first pass takes its time
        (1, 60_000, 0, False, True),  # and nothing goes over
        (5, 2000, 880, False, True),
        (5, 900, 880, False, False),  # 8 s
        (5, 0, 0, False, False),
    ],
)
def test_what_follows_from_the_figures(
    passes: int, left_mb: float, mbps: float, first_pass: bool, too_slow: bool
) -> None:
    seen = flow(answer(passes, left_mb, 180, mbps))
    assert (seen.first_pass, seen.too_slow) == (first_pass, too_slow)


def test_figures_that_are_not_there_are_none() -> None:
    seen = flow({"status": "setup"})
    assert not seen.first_pass and not seen.too_slow


def test_a_rate_below_that_of_the_link_is_not_among_the_figures() -> None:
    """QEMU counts a page once per pass, however often it was changed."""
    said = flow(answer(4, 135, 5, 72)).sentence("The link to node b on hv2")
    assert said == (
        "The link to node b on hv2 carries 9 MB/s. The guest changes 135 MB of its memory again "
        "and again: each checkpoint would stop it for 15 s."
    )


def test_a_look_in_the_middle_of_a_pass_counts_all_that_the_pass_had_left() -> None:
    passes = convergence.Passes()
    seen = []
    for number, left in ((1, 200), (1, 90), (2, 48), (2, 20), (3, 46), (3, 2), (4, 1), (5, 1)):
        seen.append(passes.look(answer(number, left, 6, 64)).left / 1e6)
    assert seen == [200, 200, 48, 48, 48, 48, 46, 1]


class QEMU:
    """One end of a migration, which gives these answers in turn."""

    def __init__(self, node: str, *answers: dict[str, Any]) -> None:
        self.node, self.answers = node, list(answers)
        self.monitor = self.host = self.machine = self
        self.name = {"a": "hv1", "b": "hv2"}[node]

    async def execute(self, _command: object, _deadline_s: float) -> dict[str, Any]:
        return self.answers.pop(0)


async def test_the_first_pass_is_waited_for_and_a_rest_that_is_too_large_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[float] = []

    async def much(_monitor: object, _little: int, deadline_s: float, _look: object) -> None:
        looks.append(deadline_s)
        raise DeadlineMissed("little memory left")

    monkeypatch.setattr(convergence, "until_little_memory_left", much)
    primary: Any = QEMU("a", *[answer(1, 900, 0, 880)] * 3, answer(4, 1900, 180, 880))
    secondary: Any = QEMU("b")
    with pytest.raises(MigrationFailed) as caught:
        await convergence.converge(primary, secondary, Deadline(600))
    assert len(looks) == 4 and not primary.answers
    assert caught.value.message == (
        "The link to node b on hv2 carries 110 MB/s. The guest changes 180 MB/s of its memory, and "
        "1900 MB were left to send: each checkpoint would stop it for 17 s."
    )
    assert caught.value.hint and "`coloctl host check hv2 --peer hv1`" in caught.value.hint
    small: Any = QEMU("a", answer(4, 500, 180, 880))
    await convergence.converge(small, secondary, Deadline(600))  # it is held for the rest

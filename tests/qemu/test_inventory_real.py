"""What each QEMU of a real pair holds is counted once per protection, and does not grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.pair_under_test import PATIENCE_S, RunningPair, running, setup_of

from coloctl.chaos.evidence.inventory import LISTS, InventoryTaker
from coloctl.chaos.evidence.listener import EventListener
from coloctl.errors import PairBusy
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu


def _protect(pair: RunningPair) -> bool:
    """Protect the pair again; return false while the failover is not over."""
    try:
        pair.ask("pair-protect", PATIENCE_S)
    except PairBusy:
        return False
    return True


def test_a_pair_that_is_protected_again_and_again_holds_the_same(
    tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]
) -> None:
    setup = setup_of(tmp_path, qemu_builds("11.1"), "counted")
    with (
        running(setup) as pair,
        EventListener(setup.name) as listener,
        InventoryTaker(setup.name, listener) as inventory,
    ):
        pair.until(lambda: len(inventory.taken) == 1)
        for number in (2, 3):
            pair.inject("kill", "secondary")
            pair.until(lambda: pair.view().protection == "unprotected")
            pair.until(lambda: _protect(pair))
            pair.until(lambda number=number: len(inventory.taken) == number)
    first, second, third = (one.counts for one in inventory.taken)
    assert {role: set(counts) for role, counts in first.items()} == {
        "primary": set(LISTS), "secondary": set(LISTS),
    }  # fmt: skip
    assert second == third

"""What a guest does to itself, told from the client's machine as a scenario does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from coloctl import paths
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import NothingToHit, build
from coloctl.chaos.run.environment import environment
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import Scenario, Workload
from coloctl.lab import guest, qemu

pytestmark = pytest.mark.guest

PATIENCE_S = 60.0
SCENARIO = Scenario(
    title="A guest that runs alone",
    why="It reboots, is reset and panics.",
    workloads=(Workload(kind="redis-appends"),),
    pair={"policy": {"auto_reprotect": False}},
    expect={"connections_survive": Params()},
)


def test_a_guest_reboots_is_reset_and_panics(guest_image: guest.GuestImage) -> None:
    binary = qemu.provide("11.1").binary
    where = Testbed(binary, "tcg", guest_image, f"t{os.getpid()}-end")
    with environment(where, SCENARIO) as play, play.born.connect() as client:

        def inject(kind: str) -> None:
            build(FAULTS, play.pair, kind, "guest", Params()).inject()

        def event(name: str) -> None:
            for one in client.events(PATIENCE_S):
                if one.name == "NODE_EVENT" and one.data["event"] == name:
                    return
            raise AssertionError(name)

        play.boot()
        for times, kind in enumerate(("guest-reboot", "guest-reset"), 2):
            inject(kind)
            event("RESET")
            boots_again(paths.pair_dir(where.name) / "a" / "console.log", times)
        inject("guest-panic")
        event("GUEST_PANICKED")
        with pytest.raises(NothingToHit, match="silent"):
            inject("guest-reset")


def boots_again(console: Path, times: int) -> None:
    """The guest has been ready so often."""
    give_up = time.monotonic() + PATIENCE_S
    while console.read_text(errors="replace").count(guest.READY_LINE) < times:
        assert time.monotonic() < give_up
        time.sleep(0.05)

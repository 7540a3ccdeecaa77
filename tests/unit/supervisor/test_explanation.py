"""The document of explain: as golden files have it, and as a value that reads it back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakeclock import FakeClock
from support.fakes import fake_state
from support.observations import PRIMARY, SECONDARY, observe

from coloctl.ha.agent import AgentAnswer
from coloctl.ha.analysis import diagnose
from coloctl.host.base import Identity
from coloctl.model.explanation import Explanation
from coloctl.model.observation import Life, Observation
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.model.strangers import Stranger
from coloctl.model.tuning import with_settings
from coloctl.supervisor.evidence import explanation
from coloctl.supervisor.given_up import GivenUp
from coloctl.supervisor.reconcile import KnownQemu
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[2] / "golden" / "explain"


def down(state: PairState) -> None:
    """A pair that was never started."""


def protected(state: PairState) -> None:
    """A pair in COLO that is well; strangers were cut off, and settings are others."""
    seen(state, Protection.COLO, observe())
    state.beside.turn_away(
        Stranger("the disks", "/run/x.sock", "process 7 of user id 65534"), 940.0
    )
    settings = {"checkpoint-mode": "adaptive", "compare-timeout": 500, "mirror-rate": "1MiB"}
    state.tune(with_settings(state.spec, settings), pace_ms=4000)
    state.agents["b"] = AgentAnswer(works=False, said="The fence agent of node b hangs.")


def frozen(state: PairState) -> None:
    """A paused pair whose primary is stopped."""
    state.paused = True
    a = replace(PRIMARY, life=Life.STOPPED, rescue_silent_ms=700.0, command_silent_ms=700.0)
    seen(state, Protection.COLO, observe(a, SECONDARY))


def apart(state: PairState) -> None:
    """A pair in COLO on two other machines; that of the secondary is out of reach."""
    a = replace(PRIMARY, agent_silent_ms=40.0, agent_delay_ms=1.5)
    b = replace(SECONDARY, life=Life.UNKNOWN, agent_silent_ms=60_000.0)
    seen(state, Protection.COLO, observe(a, b))


def left(state: PairState) -> None:
    """A guest alone; one QEMU was left on a machine, another was given up with one before."""
    seen(state, Protection.UNPROTECTED, observe(protection=Protection.UNPROTECTED))
    state.left["b"] = KnownQemu(Role.SECONDARY, Identity(77, 5))
    state.gone_for_good = GivenUp(
        "b", "secondary", "ssh://hv9", Identity(33, 4), None, 1
    ).sentence()


def failed(state: PairState) -> None:
    """A pair whose failover failed without a proof."""
    state.unfenced = "a"
    seen(state, Protection.FAILED, observe(protection=Protection.FAILED))
    state.restore(Protection.FAILED, "No proof.", since_s=990.0, exposed_since_s=980.0)


def seen(state: PairState, protection: Protection, observation: Observation) -> None:
    state.restore(protection, "All is as it is.", since_s=990.0)
    state.observation, state.finding = observation, diagnose(observation)


STATES: list[Callable[[PairState], None]] = [down, protected, frozen, apart, left, failed]


@pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)
async def test_the_document_of_an_explanation_stays_as_it_is(
    tmp_path: Path, make: Callable[[PairState], None]
) -> None:
    golden = GOLDEN / f"{make.__name__}.json"
    shown = await explained(tmp_path, make)
    written = json.dumps(shown.to_json(), indent=1, ensure_ascii=False)
    if os.environ.get("COLOCTL_GOLDEN") == "write":
        golden.write_text(written + "\n")
    assert written + "\n" == golden.read_text()
    assert Explanation.from_json(json.loads(written)) == shown


def test_an_earlier_supervisor_left_parts_out() -> None:
    document = json.loads((GOLDEN / "down.json").read_text())
    for name in (
        "settings",
        "delay_ms",
        "pace",
        "stale_code",
        "turned_away",
        "agents",
        "left",
        "given_up",
    ):
        del document[name]
    shown = Explanation.from_json(document)
    assert (shown.settings, shown.turned_away, shown.agents) == ({}, None, {})
    assert (shown.left, shown.given_up) == ((), "")


async def explained(folder: Path, make: Callable[[PairState], None]) -> Explanation:
    async with fake_state(folder) as state:
        state.clock = FakeClock(1000.0)
        state.restore(Protection.DOWN, "Nothing was started yet.", since_s=1000.0)
        make(state)
        return explanation(state)

"""Acts on a pair without QEMU: what is refused, what ends, what is set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_qmp import HANG, Refusal
from support.fakes import FakeVM, Log, fake_state, in_colo, make_spec

from coloctl.colo import plan
from coloctl.colo.protect import CAUTIOUS_DELAY_MS
from coloctl.errors import (
    CheckpointStalled,
    CommandRefused,
    NotProtected,
    PairBusy,
    ReplicationError,
    UsageError,
)
from coloctl.journal import replay
from coloctl.model.answers import Change
from coloctl.model.event import last_settings, worth_keeping
from coloctl.model.pair import FencingMethod, FencingSpec
from coloctl.model.protection import Protection
from coloctl.model.tuning import SETTINGS, with_settings
from coloctl.model.view import Merge
from coloctl.supervisor import acts
from coloctl.supervisor.acts import powerdown

pytestmark = pytest.mark.unit


def nothing(*_: object) -> None:
    return None


async def test_one_act_at_a_time(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, _, _):
        async with state.acting("checkpoint"):
            for act in (
                acts.failover(state, None),
                acts.start(state, nothing, nothing, protected=True),
                acts.set_values(state, {"checkpoint-delay": 500}),
                acts.checkpoint(state),
            ):
                with pytest.raises(PairBusy, match="checkpoint") as busy:
                    await act
                assert busy.value.hint
        assert state.protection is Protection.COLO


@pytest.mark.parametrize("protected", [True, False])
async def test_a_pair_that_runs_is_not_started_again(tmp_path: Path, protected: bool) -> None:
    async with in_colo(tmp_path) as (state, _, _):
        with pytest.raises(PairBusy, match="already runs"):
            await acts.start(state, nothing, nothing, protected=protected)
        assert state.protection is Protection.COLO


async def test_a_stop_ends_the_act_that_is_under_way_first(tmp_path: Path) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, a, b):
        a.answer("migrate-set-parameters", HANG)
        acting = asyncio.create_task(acts.checkpoint(state))
        await a.fakes[0].got("migrate-set-parameters")
        assert await acts.stop(state, force=True) == "killed"
        assert acting.cancelled()
        assert state.protection is Protection.DOWN
        assert not a.process.alive()
        assert not b.process.alive()
        # So that it never takes over.
        assert log.index("b: killed") < log.index("a: killed")


def powers_off(vm: FakeVM) -> Callable[[str], None]:
    """The guest obeys its power button, and QEMU ends."""

    def obey(name: str) -> None:
        if name == "system_powerdown":
            vm.event("SHUTDOWN", guest=True, reason="guest-shutdown")
            asyncio.get_running_loop().call_later(0.02, vm.process.die)

    return obey


@pytest.mark.parametrize("method", FencingMethod)
async def test_a_guest_shuts_down_protected_and_its_secondary_goes_last(
    tmp_path: Path, method: FencingMethod
) -> None:
    spec = replace(make_spec(), fencing=FencingSpec(method))

    log: Log = []
    async with in_colo(tmp_path, spec, log) as (state, a, b):
        a.before(powers_off(a))
        assert await acts.stop(state, force=False) == "guest shut down"
        assert "a: x-colo-lost-heartbeat" not in log  # it never had to go on alone
        assert log.index("a: system_powerdown") < log.index("b: killed")
        assert state.protection is Protection.DOWN
        assert not a.process.alive() and not b.process.alive()


async def test_a_guest_that_does_not_listen_is_cut_off_and_that_is_said(tmp_path: Path) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, a, _):
        how = await acts.stop(state, force=False, timeout_s=0.3)
        assert how.startswith("cut off")
        assert not a.process.alive()
        assert "STEP stop guest 0.3" in log


async def test_a_primary_that_waits_for_its_secondary_in_a_checkpoint_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(powerdown, "TOGETHER_WAIT_S", 0.05)

    following: list[asyncio.Future[None]] = []
    async with in_colo(tmp_path) as (state, a, b):

        def obey(name: str) -> None:
            if name == "system_powerdown":
                a.event("SHUTDOWN", guest=True, reason="guest-shutdown")
                following.append(asyncio.ensure_future(follow()))

        async def follow() -> None:
            await b.process.wait()
            a.process.die()

        a.before(obey)
        assert await acts.stop(state, force=False) == "guest shut down"
        assert state.protection is Protection.DOWN


#: What QEMU says of its block graph while it merges, and what it has read and written.
MERGING = [{"node-name": "active0", "drv": "qcow2"}, {"node-name": "#block1", "drv": "mirror_top"}]


def test_a_stop_waits_for_the_merge_of_the_node_that_serves(tmp_path: Path) -> None:
    """Also before the failover has given it the role: the dead node still has that."""

    async def check() -> None:
        async with in_colo(tmp_path) as (state, a, b):
            b.answer("query-named-block-nodes", MERGING)
            a.process.die()
            await acts.failover(state, "b")
            assert state.seats["b"].merge is Merge.UNDER_WAY
            stopping = asyncio.create_task(acts.stop(state, force=False, timeout_s=0.1))
            await asyncio.sleep(0.3)  # three times what it gives the guest
            assert b.process.alive() and not stopping.done()
            b.answer("query-named-block-nodes", [])
            assert (await stopping).startswith("cut off")
            assert state.seats["b"].merge is Merge.NONE

    asyncio.run(check())

    asyncio.run(check())


async def test_a_pair_that_is_down_can_be_stopped(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        await acts.stop(state, force=False)
        assert state.protection is Protection.DOWN


async def test_the_delay_is_set_live_and_kept_for_later(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, a, _):
        delays = a.takes_checkpoints()
        await acts.set_values(state, {"checkpoint-delay": 5000})
        assert (delays, state.delay_ms) == ([5000], 5000)
        await acts.checkpoint(state)
        assert delays == [5000, 5000]


async def test_a_longer_delay_waits_for_the_first_connection(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, a, _):
        delays = a.takes_checkpoints()
        state.cautious = True
        await acts.set_values(state, {"checkpoint-delay": 5000})
        await acts.checkpoint(state)
        assert delays == [CAUTIOUS_DELAY_MS, CAUTIOUS_DELAY_MS]
        assert (state.delay_ms, state.period_ms()) == (5000, CAUTIOUS_DELAY_MS)
        assert state.view().checkpoints.delay_ms == CAUTIOUS_DELAY_MS


async def test_a_delay_that_was_not_taken_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts.tune, "CHECKPOINT_DEADLINE_S", 0.1)

    async with in_colo(tmp_path) as (state, _, _):
        before = state.delay_ms
        with pytest.raises(CheckpointStalled):
            await acts.set_values(state, {"checkpoint-delay": 5000})
        assert state.delay_ms == before


async def test_a_checkpoint_is_not_waited_for_when_the_secondary_dies(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, a, b):
        a.answer("migrate-set-parameters", {})
        acting = asyncio.create_task(acts.checkpoint(state))
        await a.fakes[0].got("migrate-set-parameters")
        b.process.die()
        async with asyncio.timeout(60):
            with pytest.raises(ReplicationError, match="secondary on node b died"):
                await acting


async def test_no_checkpoint_without_a_secondary(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        with pytest.raises(NotProtected):
            await acts.checkpoint(state)
        await acts.set_values(state, {"checkpoint-delay": 700})
        assert state.delay_ms == 700


def told(a: FakeVM, command: str) -> list[dict[str, Any]]:
    """The arguments of every such command from now on, growing."""
    heard: list[dict[str, Any]] = []

    def answer(arguments: dict[str, Any]) -> dict[str, Any]:
        heard.append(arguments)
        return {}

    a.answer(command, answer)
    return heard


LIMITS = {"compare-timeout": 500, "expired-scan-cycle": "50", "max-queue-size": 4096}


async def test_the_comparison_of_every_nic_is_told_its_limits(tmp_path: Path) -> None:
    async with in_colo(tmp_path, make_spec(nics=2)) as (state, a, _):
        heard = told(a, "qom-set")
        assert await acts.set_values(state, LIMITS) == (
            Change("compare-timeout", 300, 500),
            Change("expired-scan-cycle", 100, 50),
            Change("max-queue-size", 1024, 4096),
        )
        assert {(one["path"], one["property"], one["value"]) for one in heard} == {
            (f"/objects/{compare}", name, value)
            for compare in ("comp0", "comp0-n1")
            for name, value in (
                ("compare_timeout", 500),
                ("expired_scan_cycle", 50),
                ("max_queue_size", 4096),
            )
        }
        assert state.view().settings["compare-timeout"].value == 500
        assert state.view().settings["compare-timeout"].pair_file == 300


async def test_without_a_comparison_the_limits_are_kept_for_the_next_one(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, a, _):
        a.answer("qom-set", Refusal("Device '/objects/comp0' not found", "DeviceNotFound"))
        await acts.set_values(state, LIMITS)
        steps = plan.rebuild_filters(state.spec, "a", tmp_path, behind_rewriter=False)
        (compare,) = (
            step.command.arguments
            for step in steps
            if step.command.arguments.get("qom-type") == "colo-compare"
        )
        assert (compare["compare_timeout"], compare["max_queue_size"]) == (500, 4096)


async def test_a_copy_takes_its_rate_in_the_middle_of_the_act_that_copies(tmp_path: Path) -> None:
    async with in_colo(tmp_path, make_spec(disks=2)) as (state, a, _):
        heard = told(a, "block-job-set-speed")
        async with state.acting("start"):
            await acts.set_values(state, {"mirror-rate": "50MiB"})
            assert open_acts(tmp_path) == {"start"}
        assert heard == [{"device": f"resync{i}", "speed": 50 << 20} for i in range(2)]
        assert state.spec.policy.mirror_rate == 50 << 20


def open_acts(folder: Path) -> set[str]:
    return {intent.act for intent in replay(folder / "journal.jsonl").open_intents}


async def test_a_rate_that_was_not_taken_is_not_kept(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, a, _):
        a.answer("block-job-set-speed", Refusal("no"))
        with pytest.raises(CommandRefused):
            await acts.set_values(state, {"mirror-rate": 1})
        assert state.spec.policy.mirror_rate == 0
        a.answer("block-job-set-speed", Refusal("Block job 'resync0' not found", "DeviceNotActive"))
        await acts.set_values(state, {"mirror-rate": 1})


@pytest.mark.parametrize(
    "settings", [{"compare-timeout": 0}, {"max-queue-size": 5, "speed": 1}, {"mirror-rate": "x"}]
)
async def test_of_settings_one_of_which_is_wrong_none_is_set(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, _, _):
        log.clear()
        with pytest.raises(UsageError):
            await acts.set_values(state, settings)
        assert log == [] and state.spec == state.pair_file


async def test_adaptive_mode_begins_with_the_delay_that_was_set(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, a, _):
        delays = a.takes_checkpoints()
        await acts.set_values(state, {"checkpoint-delay": 3000})
        await acts.set_values(state, {"checkpoint-mode": "adaptive"})
        assert (state.adaptive, state.delay_ms) == (True, 3000)
        state.tune(state.spec, pace_ms=8000)
        assert state.period_ms() == 8000
        await acts.set_values(state, {"checkpoint-mode": "fixed"})
        assert delays == [3000, 3000, 3000]


async def test_what_was_set_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, _, _):
        await acts.set_values(state, {**LIMITS, "mirror-rate": "1GiB"})
        kept = worth_keeping(replay(tmp_path / "journal.jsonl").records)
        journal = last_settings(kept)
        settings = {name: value for name, value in journal.items() if name in SETTINGS}
        assert with_settings(state.pair_file, settings) == state.spec != state.pair_file

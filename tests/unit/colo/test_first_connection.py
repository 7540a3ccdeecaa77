"""After the first connection comes a checkpoint, and only then the period that was asked for."""

from __future__ import annotations

import asyncio

import pytest
from support.fakes import Log, fake_vm, make_spec

from coloctl.colo import first_connection
from coloctl.errors import CheckpointStalled

pytestmark = pytest.mark.unit


async def wait_a_little() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_the_period_stays_cautious_until_a_connection_is_seen() -> None:
    async with fake_vm("a", []) as vm:
        delays = vm.takes_checkpoints()
        wanted = 5000
        guarding = asyncio.create_task(
            first_connection.guard(make_spec(nics=2), vm, lambda: wanted)
        )
        await wait_a_little()
        assert delays == []
        wanted = 7000  # as it is when the connection comes
        vm.host.connected.set()
        async with asyncio.timeout(60):
            await guarding
        assert delays == [7000]


async def test_without_a_tap_there_is_nothing_to_wait_for() -> None:
    async with fake_vm("a", []) as vm:
        delays = vm.takes_checkpoints()
        async with asyncio.timeout(60):
            await first_connection.guard(make_spec(nics=0), vm, lambda: 5000)
        assert delays == [5000]


async def test_a_tap_that_cannot_be_watched_keeps_the_pair_cautious() -> None:
    async with fake_vm("a", []) as vm:
        delays = vm.takes_checkpoints()
        vm.host.unwatchable = True
        guarding = asyncio.create_task(first_connection.guard(make_spec(), vm, lambda: 5000))
        await wait_a_little()
        assert not guarding.done()
        guarding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guarding
        assert delays == []


async def test_a_checkpoint_that_never_completes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_connection, "CHECKPOINT_DEADLINE_S", 0.1)

    log: Log = []
    async with fake_vm("a", log) as vm:
        vm.host.connected.set()
        with pytest.raises(CheckpointStalled):
            await first_connection.guard(make_spec(), vm, lambda: 5000)
    assert "a: migrate-set-parameters" in log

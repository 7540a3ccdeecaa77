"""`fence` returns with a proof or raises; taps help and never decide."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_qmp import HANG
from support.fakes import Log, fake_vm, make_spec

from coloctl.errors import FailoverRefused, FencingFailed
from coloctl.ha import failover
from coloctl.ha.failover import require_answer
from coloctl.ha.fencing import fence
from coloctl.model.pair import FencingMethod, FencingSpec

pytestmark = pytest.mark.unit

BY_HAND = replace(make_spec(), fencing=FencingSpec(FencingMethod.MANUAL))


async def test_the_taps_go_down_before_the_process_dies() -> None:
    log: Log = []
    async with fake_vm("a", log) as vm:
        fenced = await fence(make_spec(nics=2), vm)
        assert (fenced.method, fenced.how) == (FencingMethod.KILL, "sigkill")
        assert fenced.proof.pid == vm.process.identity.pid
        assert not vm.process.alive()
    assert sorted(log[:2]) == ["a: tap-a0 down", "a: tap-a1 down"]
    assert log[2] == "a: killed"


async def test_taps_that_cannot_be_closed_do_not_keep_a_node_alive() -> None:
    async with fake_vm("a", []) as vm:
        vm.host.no_taps = True
        await fence(make_spec(), vm)
        assert not vm.process.alive()


async def test_a_process_that_does_not_die_is_no_proof() -> None:
    async with fake_vm("a", []) as vm:
        vm.process.immortal = True
        with pytest.raises(FencingFailed) as failed:
            await fence(make_spec(), vm)
        assert failed.value.node == "a"
        assert failed.value.exit_code == 7


async def test_what_a_person_must_fence_is_left_as_it_is() -> None:
    log: Log = []
    async with fake_vm("a", log) as vm:
        with pytest.raises(FencingFailed, match="manual") as failed:
            await fence(BY_HAND, vm)
        assert failed.value.hint
        assert vm.process.alive()
    assert log == []


async def test_the_dead_need_nobody() -> None:
    async with fake_vm("a", []) as vm:
        vm.process.die()
        assert (await fence(BY_HAND, vm)).how == "already-dead"


async def test_a_survivor_must_answer_before_anything_is_done_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_vm("b", []) as vm:
        await require_answer(vm)
        monkeypatch.setattr(failover, "RESCUE_DEADLINE_S", 0.1)
        vm.answer("query-yank", HANG)
        with pytest.raises(FailoverRefused, match="no answer"):
            await require_answer(vm)
        vm.process.is_frozen = True
        with pytest.raises(FailoverRefused, match="SIGSTOP"):
            await require_answer(vm)
        vm.process.die()
        with pytest.raises(FailoverRefused, match="gone"):
            await require_answer(vm)


async def test_what_still_writes_to_the_images_of_the_dead_stops_the_fence() -> None:
    async with fake_vm("a", []) as vm:
        vm.host.holding = ["the image /srv/a0.qcow2 may be written to by process 4711 (tar)"]
        with pytest.raises(FencingFailed, match=r"a is dead, but the image .* 4711") as failed:
            await fence(make_spec(), vm, deadline_s=0.05)
        assert failed.value.hint and not vm.process.alive()
        vm.host.holding = ["the tap tap-a0 is open in process 4711 (x)"] * 3
        vm.host.letting_go = True
        assert (await fence(make_spec(), vm)).how == "already-dead"
        assert vm.host.holding == []

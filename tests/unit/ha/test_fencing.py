"""`fence` returns with a proof, or for a secondary out of reach without one; taps never decide."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from fake_qmp import HANG
from support.fakes import FakeVM, Log, fake_vm, make_spec

from coloctl.errors import FailoverRefused, FencingFailed
from coloctl.ha import failover, fencing
from coloctl.ha.failover import require_answer
from coloctl.ha.fencing import Confirmation, Means, fence
from coloctl.host.records import Contact
from coloctl.model.observation import Life
from coloctl.model.pair import FencingMethod, FencingSpec, Role

pytestmark = pytest.mark.unit

BY_HAND = replace(make_spec(), fencing=FencingSpec(FencingMethod.MANUAL))


async def test_the_taps_go_down_before_the_process_dies() -> None:
    log: Log = []
    async with fake_vm("a", log) as vm:
        fenced = await fence(make_spec(nics=2), vm)
        assert (fenced.method, fenced.how) == (FencingMethod.KILL, "sigkill")
        assert fenced.proof and fenced.proof.pid == fenced.pid == vm.process.identity.pid
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
        with monkeypatch.context() as patch:  # killed, and the kernel has its files to close yet
            patch.setattr(vm.process, "life", lambda: Life.DEAD)
            assert vm.process.alive()
            with pytest.raises(FailoverRefused, match="gone"):
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


#: How the machine of the lost node is reached when its fence begins, and what comes later.
REACHES = ("here", "connected", "silent", "lost", "never", "falls silent", "is lost", "comes back")
#: The agent of a node: it confirms that the node is off, or refuses.
OFF = ("sh", "-c", "cat > /dev/null; echo it is off; exit 2")
REFUSES = ("sh", "-c", "cat > /dev/null; exit 1")


def reach(vm: FakeVM, how: str) -> None:
    """Let the machine of ``vm`` be reached like that from now on."""

    async def then(*moves: tuple[Contact, bool]) -> None:
        for contact, silent in moves:
            vm.host.move(contact, silent=silent)
            await asyncio.sleep(0.03)
        await vm.host.answer()

    connected, lost = Contact.CONNECTED, Contact.LOST
    match how:
        case "here":
            vm.host.move(Contact.HERE)
        case "lost" | "never":
            vm.host.move(Contact(how))
        case "falls silent":
            vm.host.move(connected)
            vm.process.killing = lambda: then((connected, True))
        case "is lost":
            vm.host.move(connected)
            vm.process.killing = lambda: then((connected, True), (lost, False))
        case "comes back":
            vm.host.move(connected)
            vm.process.killing = lambda: then((connected, True), (connected, False))
        case _:
            vm.host.move(connected, silent=how == "silent")


def seen(how: str) -> bool:
    return how in {"here", "connected", "comes back"}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "TAP_DEADLINE_S", 0.01)
    monkeypatch.setattr(fencing, "GIVEN_UP_WAIT_S", 0.1)  # for one that comes back after 30 ms


ASKED = ("nobody", "confirmed", "forced", "agent", "agent refuses", "operator")


@pytest.mark.parametrize(
    ("role", "method", "how", "asked"),
    [
        one
        for one in itertools.product((Role.PRIMARY, Role.SECONDARY), FencingMethod, REACHES, ASKED)
        if (one[3].startswith("agent")) <= (one[1] is FencingMethod.COMMAND)
        and (one[3] == "operator") <= (one[1] is FencingMethod.MANUAL)
        and (one[3] == "nobody") <= (one[1] is FencingMethod.KILL)
    ],
)
async def test_only_a_secondary_out_of_reach_or_a_node_that_is_off_is_fenced_without_a_proof(
    role: Role, method: FencingMethod, how: str, asked: str, hasty: None
) -> None:
    """Whoever was asked, however its machine is reached, and whatever happens to that meanwhile."""
    command = REFUSES if asked == "agent refuses" else OFF
    options = {"a": {"plug": "a"}, "b": {"plug": "b"}}
    spec = replace(make_spec(), fencing=FencingSpec(method, command, options=options))
    confirmation = Confirmation()
    if asked in {"operator", "forced"}:  # a forced one asks where the kernel gives no proof
        confirmation.give()
    means = Means(
        confirmation if method is FencingMethod.MANUAL else None,
        confirmed=asked == "confirmed",
        forced=asked == "forced",
    )
    log: Log = []
    async with fake_vm("b", log) as vm:
        reach(vm, how)
        unasked = role is Role.SECONDARY and method is FencingMethod.KILL
        states_off = {"confirmed": "confirmed-", "agent": "agent-", "operator": "confirmed-"}
        asks = {FencingMethod.COMMAND: "agent-", FencingMethod.MANUAL: "confirmed-"}
        states_off["forced"] = asks.get(method, "")
        by = "" if unasked and asked != "confirmed" else states_off.get(asked, "")
        without = not seen(how) and (unasked or bool(by)) and asked != "agent refuses"
        # Only a machine that stays silent lets the deadline pass: then no other end is possible.
        waited_out = how in {"silent", "falls silent"} and not unasked
        deadline_s = 0.05 if waited_out else 30.0
        try:
            fenced = await fence(spec, vm, means, role=role, deadline_s=deadline_s)
        except FencingFailed:
            assert not without or waited_out
            assert not seen(how) or asked == "agent refuses"
            # A silent machine that stays connected gives no proof within the deadline; a real one
            # is lost after three seconds.
            assert not unasked
            return
        assert not waited_out
        assert (fenced.proof is None) == (not seen(how)), fenced
        assert fenced.pid == vm.process.identity.pid == fenced.record().pid
        if fenced.proof is None:
            assert without and fenced.how == f"{by}out-of-reach"
            assert fenced.claim_alone == (by == "")
            assert not fenced.claim_alone or unasked
        else:
            assert not vm.process.alive() and not fenced.claim_alone


async def test_a_secondary_is_waited_for_only_while_its_machine_is_seen() -> None:
    """A busy one that answers late is killed; one that is gone costs `GIVEN_UP_WAIT_S`."""
    for how, kills in (("connected", True), ("silent", False), ("lost", False)):
        log: Log = []
        async with fake_vm("b", log) as vm:
            reach(vm, how)
            if kills:
                vm.process.killing = lambda: asyncio.sleep(3 * fencing.OUT_OF_REACH_WAIT_S)
            fenced = await fence(make_spec(), vm, role=Role.SECONDARY)
            assert (fenced.proof is not None) is kills is ("b: killed" in log)


async def test_a_primary_out_of_reach_is_never_given_up_by_itself(hasty: None) -> None:
    for contact in (Contact.LOST, Contact.NEVER):
        async with fake_vm("a", []) as vm:
            vm.host.move(contact)
            with pytest.raises(FencingFailed, match="out of reach"):
                await fence(make_spec(), vm, role=Role.PRIMARY)
            with pytest.raises(FencingFailed, match="out of reach"):
                await fence(make_spec(), vm)
            assert vm.process.alive()


async def test_what_a_secondary_within_reach_still_holds_stops_its_fence_too() -> None:
    async with fake_vm("b", []) as vm:
        vm.host.move(Contact.CONNECTED)
        vm.host.holding = ["the image /srv/b0.qcow2 may be written to by process 4711 (tar)"]
        with pytest.raises(FencingFailed, match="4711"):
            await fence(make_spec(), vm, role=Role.SECONDARY, deadline_s=0.05)

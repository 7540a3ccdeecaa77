"""Beats: what is silent is told, what answers is not, and no node stops the heart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_qmp import HANG, Refusal
from hypothesis import given
from hypothesis import strategies as st
from support.fakeclock import FakeClock
from support.fakes import FakeHost, FakeVM, fake_vm, make_spec

from coloctl.colo.checkpoint import CheckpointStats
from coloctl.ha.analysis import diagnose
from coloctl.ha.heartbeat import AWAKE_MAX, Heartbeat
from coloctl.ha.link import CLEAN_MS, LOOK_EVERY
from coloctl.ha.probes import COMMAND_EVERY, QUIET_MS, Context
from coloctl.host.delivery import TcpConnection
from coloctl.host.records import Contact
from coloctl.model.observation import Diagnosis, Life, Observation
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.vm import VM

pytestmark = pytest.mark.unit

BEAT_MS = 20.0
COLO = Context(Protection.COLO)


class Heart:
    """A heartbeat that is beaten by hand."""

    def __init__(self, a: FakeVM, b: FakeVM) -> None:
        self.a, self.b = a, b
        self.answers: list[tuple[str, str]] = []
        self.heart = Heartbeat(
            make_spec(), timed=lambda node, road, _: self.answers.append((node, road))
        )
        self.heart.attend("a", a, Role.PRIMARY)
        self.heart.attend("b", b, Role.SECONDARY)

    async def beat(self, times: int = 1, context: Context = COLO) -> Observation:
        """That many beats later; what was answered in between has been read."""
        for _ in range(times):
            await turns()
            seen = self.heart.beat(BEAT_MS, context)
        return seen

    async def whole_turn(self) -> Observation:
        """Every road has been asked, and had time to answer."""
        await self.beat(COMMAND_EVERY)
        return await self.beat()

    def hang(self, vm: FakeVM, *, road: int) -> None:
        vm.fakes[road].answers = dict(vm.fakes[road].answers) | {
            "query-yank": HANG,
            "query-status": HANG,
        }

    def thaw(self, vm: FakeVM) -> None:
        for fake in vm.fakes:
            fake.answers = {}
            fake.answer_late()


async def turns() -> None:
    """What lies in the sockets of this process has reached everybody in it."""
    for _ in range(30):
        await asyncio.sleep(0)


def play(story: Callable[[Heart], Awaitable[None]], **answers: Any) -> None:
    async def whole() -> None:
        async with fake_vm("a", [], **answers) as a, fake_vm("b", [], **answers) as b:
            await story(Heart(a, b))

    asyncio.run(asyncio.wait_for(whole(), 30))


def silences(seen: Observation) -> dict[str, float]:
    return {
        f"{node}-{road}": silent_ms
        for node, one in seen.nodes.items()
        for road, silent_ms in (
            ("rescue", one.rescue_silent_ms),
            ("command", one.command_silent_ms),
        )
        if silent_ms
    }


def test_whoever_answers_is_never_silent() -> None:
    async def story(heart: Heart) -> None:
        for _ in range(3 * COMMAND_EVERY):
            seen = await heart.beat()
            assert not silences(seen)
            assert [one.life for one in seen.nodes.values()] == [Life.ALIVE, Life.ALIVE]
        assert set(heart.answers) == {(n, road) for n in "ab" for road in ("rescue", "command")}
        for vm in (heart.a, heart.b):
            assert set(vm.fakes[0].commands()) == {"query-status"}
            assert set(vm.fakes[1].commands()) == {"query-yank"}

    play(story)


def test_a_refusal_is_an_answer() -> None:
    async def story(heart: Heart) -> None:
        for _ in range(2 * COMMAND_EVERY):
            assert not silences(await heart.beat())

    play(story, query_yank=Refusal("no"), query_status=Refusal("no"))


def test_a_frozen_node_is_asked_once_and_silent_until_it_answers() -> None:
    async def story(heart: Heart) -> None:
        await heart.whole_turn()
        asked = len(heart.b.fakes[1].commands())
        heart.hang(heart.b, road=1)
        heart.b.process.is_frozen = True
        before = 0.0
        for _ in range(20):
            seen = await heart.beat()
            b = seen.nodes["b"]
            if before:
                assert b.rescue_silent_ms == before + BEAT_MS
            assert b.life is (Life.STOPPED if b.rescue_silent_ms else Life.ALIVE)
            before = b.rescue_silent_ms
        assert before >= 17 * BEAT_MS
        assert len(heart.b.fakes[1].commands()) == asked + 1
        assert set(silences(seen)) == {"b-rescue"}

        heart.b.process.is_frozen = False
        heart.thaw(heart.b)
        for _ in range(5):
            seen = await heart.beat()
            assert not silences(seen)
            assert seen.nodes["b"].life is Life.ALIVE

    play(story)


def test_a_busy_main_loop_leaves_the_rescue_road_alone() -> None:
    async def story(heart: Heart) -> None:
        heart.hang(heart.a, road=0)
        await heart.whole_turn()
        seen = await heart.beat(5)
        assert set(silences(seen)) == {"a-command"}

    play(story)


def test_a_silent_process_is_busy_while_it_uses_cpu_time_and_not_for_ever_after() -> None:
    async def story(heart: Heart) -> None:
        used = [0.0]
        heart.a.process.cpu_s = lambda: used[0]  # type: ignore[method-assign]
        heart.hang(heart.a, road=1)
        await heart.beat(5)
        assert not (await heart.beat()).nodes["a"].busy
        for _ in range(100):
            used[0] += 1e-6
            seen = await heart.beat()
            assert seen.nodes["a"].busy
        window = round(seen.limits.silent_ms / BEAT_MS)
        assert (await heart.beat(window - 1)).nodes["a"].busy
        assert not (await heart.beat(2)).nodes["a"].busy

    play(story)


SLOW_MS = 500.0


def test_what_the_way_to_a_machine_takes_is_no_silence_of_its_qemu() -> None:
    async def story(heart: Heart) -> None:
        heart.b.host.move(Contact.CONNECTED, round_trip_ms=SLOW_MS)
        await heart.whole_turn()
        heart.hang(heart.b, road=1)
        beats = round(SLOW_MS / BEAT_MS)
        seen = await heart.beat(beats)
        assert seen.nodes["b"].rescue_silent_ms == 0
        assert seen.nodes["b"].agent_delay_ms == SLOW_MS
        # A way that is quicker again does not turn the wait so far into a silence.
        heart.b.host.move(Contact.CONNECTED, round_trip_ms=1.0)
        seen = await heart.beat(4)
        assert seen.nodes["b"].rescue_silent_ms <= 4 * BEAT_MS
        seen = await heart.beat(10)
        assert 10 * BEAT_MS <= seen.nodes["b"].rescue_silent_ms <= 14 * BEAT_MS
        assert seen.nodes["b"].agent_silent_ms == 0
        assert seen.nodes["b"].life is Life.ALIVE
        heart.thaw(heart.b)
        await heart.beat(5)
        assert not silences(await heart.beat())
        heart.hang(heart.b, road=1)
        assert (await heart.beat(6)).nodes["b"].rescue_silent_ms > 0

    play(story)


@pytest.mark.parametrize("contact", [Contact.CONNECTED, Contact.LOST])
def test_an_agent_that_reports_nothing_is_its_own_silence_and_none_of_its_qemu(
    contact: Contact,
) -> None:
    async def story(heart: Heart) -> None:
        host = heart.b.host
        host.move(Contact.CONNECTED)
        await heart.whole_turn()
        assert (await heart.beat()).nodes["b"].agent_silent_ms == 0
        assert (await heart.beat()).nodes["a"].agent_silent_ms is None
        host.move(contact, silent=True)
        heart.hang(heart.b, road=0)
        heart.hang(heart.b, road=1)
        seen = await heart.beat(200)
        b = seen.nodes["b"]
        assert b.life is Life.UNKNOWN
        assert b.agent_silent_ms == 199 * BEAT_MS  # it had reported at the first
        assert b.rescue_silent_ms < QUIET_MS and b.command_silent_ms < QUIET_MS
        assert diagnose(replace(seen, link_silent_ms=0.0)).diagnosis is Diagnosis.UNKNOWN
        host.move(Contact.CONNECTED)
        seen = await heart.beat(2)  # what was asked before is still on its way
        assert seen.nodes["b"].life is Life.ALIVE
        assert seen.nodes["b"].agent_silent_ms == 0
        assert diagnose(seen).diagnosis is Diagnosis.HEALTHY
        heart.thaw(heart.b)
        await heart.whole_turn()
        assert not silences(await heart.beat())

    play(story)


def test_checkpoints_that_are_not_seen_are_not_missed() -> None:
    async def story(heart: Heart) -> None:
        stats = CheckpointStats()
        context = Context(Protection.COLO, stats, 100.0)
        heart.a.host.move(Contact.CONNECTED)
        await heart.beat(3, context)
        heart.a.host.move(Contact.LOST)
        assert (await heart.beat(300, context)).overdue_ms < QUIET_MS
        stats.stop(1.0)
        assert (await heart.beat(300, context)).held_ms < QUIET_MS
        heart.a.host.move(Contact.CONNECTED)
        assert (await heart.beat(30, context)).held_ms >= 29 * BEAT_MS

    play(story)


def test_a_monitor_that_was_opened_again_is_asked_and_the_old_one_is_not_awaited() -> None:
    async def story(heart: Heart) -> None:
        await heart.whole_turn()
        heart.hang(heart.a, road=1)
        assert (await heart.beat(10)).nodes["a"].rescue_silent_ms >= 5 * BEAT_MS
        heart.a.monitor = heart.b.monitor
        await heart.beat(3)
        assert not silences(await heart.beat())
        heart.thaw(heart.a)  # the old one answers now
        for _ in range(COMMAND_EVERY):
            assert not silences(await heart.beat())

    play(story)


def test_a_monitor_that_is_gone_is_silence_and_stops_nothing() -> None:
    async def story(heart: Heart) -> None:
        for fake in heart.a.fakes:
            fake.close()
        seen = await heart.beat(10)
        assert seen.nodes["a"].rescue_silent_ms >= 5 * BEAT_MS
        assert seen.nodes["a"].life is Life.ALIVE
        heart.a.process.die()
        assert (await heart.beat()).nodes["a"].life is Life.DEAD
        assert not any(road.startswith("b") for road in silences(seen))

    play(story)


def test_whoever_is_attended_again_is_asked_again_although_an_answer_is_owed() -> None:
    async def story(heart: Heart) -> None:
        heart.hang(heart.a, road=1)
        await heart.beat(10)
        heart.heart.leave("a")
        assert "a" not in (await heart.beat()).nodes
        heart.heart.attend("a", heart.a, Role.PRIMARY)
        assert (await heart.beat(10)).nodes["a"].rescue_silent_ms >= 5 * BEAT_MS
        heart.thaw(heart.a)
        await heart.beat(2)
        assert not silences(await heart.beat())

    play(story)


def test_notices_last_until_the_node_is_attended_anew() -> None:
    async def story(heart: Heart) -> None:
        for name in ("colo-exit", "guest-panic", "colo-exit"):
            heart.heart.notice("a", name)
        assert (await heart.beat()).nodes["a"].notices == ("guest-panic", "colo-exit")
        heart.heart.attend("a", heart.a, Role.PRIMARY)
        assert (await heart.beat()).nodes["a"].notices == ()

    play(story)


def test_a_guest_that_reset_itself_is_given_time() -> None:
    async def story(heart: Heart) -> None:
        before = (await heart.beat()).limits
        heart.heart.notice("b", "guest-reset")  # a secondary is reset at every checkpoint
        assert (await heart.beat()).limits == before
        heart.heart.notice("a", "guest-reset")
        during = (await heart.beat()).limits
        assert during.stall_ms > before.stall_ms
        assert during.suspect_ms == before.suspect_ms
        for _ in range(4):
            seen = heart.heart.beat(10_000, COLO)
        assert seen.limits == before

    play(story)


def test_a_panic_is_no_news_any_more_when_the_reset_after_it_is_none() -> None:
    async def story(heart: Heart) -> None:
        for name in ("guest-panic", "guest-reset"):
            heart.heart.notice("a", name)
        assert (await heart.beat()).nodes["a"].notices == ("guest-panic", "guest-reset")
        for again in ((), ("guest-panic",)):
            for name in ("guest-reset", *again):
                heart.heart.notice("a", name)
            for _ in range(4):
                seen = heart.heart.beat(10_000, COLO)
            assert seen.nodes["a"].notices == again

    play(story)


def test_a_checkpoint_holds_the_guest_from_stop_to_resume_and_is_overdue_after_its_period() -> None:
    async def story(heart: Heart) -> None:
        stats = CheckpointStats()

        def context(period_ms: float = 100.0) -> Context:
            return Context(Protection.COLO, stats, period_ms)

        await heart.beat(1, context())
        seen = await heart.beat(5, context())
        assert (seen.held_ms, seen.overdue_ms) == (0, 0)
        assert (await heart.beat(3, context())).overdue_ms == 3 * BEAT_MS
        stats.stop(1.0)
        await heart.beat(1, context())
        seen = await heart.beat(4, context())
        assert (seen.held_ms, seen.overdue_ms) == (4 * BEAT_MS, 0)
        stats.resume(1.08)
        seen = await heart.beat(1, context())
        assert (seen.held_ms, seen.overdue_ms) == (0, 0)
        # A period that is made shorter was not due in the time before.
        assert (await heart.beat(50, context(20_000))).overdue_ms == 0
        assert (await heart.beat(1, context())).overdue_ms == 0

    play(story)


def test_a_cut_link_is_silent_in_its_worse_direction() -> None:
    async def story(heart: Heart) -> None:
        hosts = {"a": FakeHost("a", []), "b": FakeHost("b", [])}
        assert (await heart.beat()).link_silent_ms is None
        await heart.heart.watch(hosts)  # type: ignore[arg-type]
        assert (await heart.beat()).link_silent_ms == 0
        hosts["b"].cut_off = True
        assert (await heart.beat(3)).link_silent_ms == 3 * BEAT_MS
        hosts["b"].cut_off = False
        assert (await heart.beat()).link_silent_ms == 0
        heart.heart.unwatch()
        assert (await heart.beat()).link_silent_ms is None

    play(story)


def test_a_connection_that_is_cut_alone_is_told_and_the_pair_is_not_calm() -> None:
    async def story(heart: Heart) -> None:
        hosts = {"a": FakeHost("a", []), "b": FakeHost("b", [])}
        assert (await heart.beat()).unacked_ms is None
        await heart.heart.watch(hosts)  # type: ignore[arg-type]
        for _ in range(round(CLEAN_MS / BEAT_MS) + 1):
            seen = heart.heart.beat(BEAT_MS, COLO)
        assert (seen.unacked_ms, seen.unacked_by) == (0.0, "")
        port = make_spec().replication.nbd_port()
        hosts["a"].sent_data = (TcpConnection(b"one", port, unacked=1, resent=2, heard=7),)
        for _ in range(2 * LOOK_EVERY + 1):
            seen = heart.heart.beat(BEAT_MS, COLO)
        assert (seen.unacked_ms, seen.unacked_by) == (LOOK_EVERY * BEAT_MS, "disk")
        assert seen.link_silent_ms == 0

    play(story)


@contextlib.asynccontextmanager
async def running(
    heart: Heartbeat, clock: FakeClock
) -> AsyncIterator[Callable[[float], Awaitable[list[Observation]]]]:
    """``after(seconds)`` lets that time pass at once and answers what was told meanwhile."""
    told: list[Observation] = []
    task = asyncio.create_task(heart.run(lambda: COLO, told.append))

    async def after(seconds: float) -> list[Observation]:
        told.clear()
        await turns()
        clock.advance(seconds)
        await turns()
        return list(told)

    try:
        yield after
    finally:
        task.cancel()
        await asyncio.wait({task})


@given(st.lists(st.floats(0.001, 30.0), min_size=1, max_size=12))
def test_only_time_in_which_the_supervisor_ran_counts_as_silence(naps: list[float]) -> None:
    async def story() -> None:
        clock = FakeClock()
        async with fake_vm("a", [], query_yank=HANG) as a:
            heart = Heartbeat(make_spec(), clock)
            heart.attend("a", a, Role.PRIMARY)
            interval_s = make_spec().detection.heartbeat_ms / 1000
            async with running(heart, clock) as after:
                for _ in range(4):
                    await after(interval_s)
                silent_ms = (await after(interval_s))[-1].nodes["a"].rescue_silent_ms
                for nap_s in naps:
                    told = await after(nap_s)
                    assert len(told) <= 1, "a beat that was missed is not made up for"
                    most_ms = min(nap_s + interval_s, AWAKE_MAX * interval_s) * 1000
                    for seen in told:
                        grown_ms = seen.nodes["a"].rescue_silent_ms - silent_ms
                        assert 0 < grown_ms <= most_ms + 1e-6
                        silent_ms = seen.nodes["a"].rescue_silent_ms

    asyncio.run(asyncio.wait_for(story(), 60))


async def test_a_heart_that_is_stopped_has_let_go_of_everything() -> None:
    async def story() -> None:
        clock = FakeClock()
        async with fake_vm("a", []) as vm:
            heart = Heartbeat(make_spec(), clock)
            attended: VM = vm
            heart.attend("a", attended, Role.PRIMARY)
            async with running(heart, clock) as after:
                assert await after(1)
            assert heart.observation(COLO).nodes == {}
            assert not heart.watches_link

    await asyncio.wait_for(story(), 30)


@pytest.mark.parametrize("way_ms", [0.0, 1.0, 7.5])
async def test_a_limit_is_noticed_when_it_has_passed_and_not_with_the_next_beat(
    way_ms: float,
) -> None:
    """Of a stopped process, whatever the way to its machine takes; the beats go on as before."""
    clock, spec = FakeClock(), make_spec()
    interval_s, limit_ms = spec.detection.heartbeat_ms / 1000, spec.detection.suspect_after_ms
    async with fake_vm("a", [], query_yank=HANG) as a, fake_vm("b", []) as b:
        a.process.is_frozen = True
        heart = Heartbeat(spec, clock)
        for vm, role in ((a, Role.PRIMARY), (b, Role.SECONDARY)):
            vm.host.move(Contact.CONNECTED, round_trip_ms=way_ms)
            heart.attend(vm.node, vm, role)
        async with running(heart, clock) as after:
            while not a.fakes[1].commands():
                await after(interval_s)
            asked_s = clock.now()
            noticed: list[Observation] = []
            while not noticed:
                told = await after(0.0005)
                noticed = [
                    one for one in told if diagnose(one).diagnosis is Diagnosis.PRIMARY_FROZEN
                ]
                assert clock.now() < asked_s + 1
            passed_ms = (noticed[0].at_s - asked_s) * 1000
            assert limit_ms + way_ms <= passed_ms <= limit_ms + way_ms + 1
            assert limit_ms <= noticed[0].nodes["a"].rescue_silent_ms <= limit_ms + 1
            for _ in range(3):  # each beat is one more interval of silence, none of it twice
                before = (await after(interval_s))[-1].nodes["a"].rescue_silent_ms
                then = (await after(interval_s))[-1].nodes["a"].rescue_silent_ms
                assert then == pytest.approx(before + interval_s * 1000)


async def test_no_beat_is_cut_for_a_process_that_the_kernel_does_not_call_stopped() -> None:
    clock, spec = FakeClock(), make_spec()
    interval_s = spec.detection.heartbeat_ms / 1000
    async with fake_vm("a", [], query_yank=HANG) as a:
        heart = Heartbeat(spec, clock)
        heart.attend("a", a, Role.PRIMARY)
        async with running(heart, clock) as after:
            for _ in range(12):
                told = await after(interval_s)
                assert all(round(one.at_s / interval_s, 6).is_integer() for one in told), (
                    "between two beats"
                )

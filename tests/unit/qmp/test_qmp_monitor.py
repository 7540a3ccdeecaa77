"""Two roads to one QEMU: the rescue works while commands hang, and every event is told once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_qmp import CLOSE, HANG, FakeQMP, open_monitor

from coloctl.errors import DeadlineMissed, OutcomeUnknown, Unreachable
from coloctl.qmp import command as qmp
from coloctl.qmp.monitor import Monitor

pytestmark = pytest.mark.unit

Body = Callable[[FakeQMP, FakeQMP, Monitor], Awaitable[None]]


def play(body: Body, *, answers: dict[str, Any] | None = None, **more: Any) -> None:
    """Runs ``body`` with both fakes and the monitor on them; the command road gives ``answers``."""

    async def whole() -> None:
        async with (
            FakeQMP(answers) as command,
            FakeQMP() as rescue,
            await open_monitor(command, rescue, **more) as monitor,
        ):
            await body(command, rescue, monitor)

    asyncio.run(asyncio.wait_for(whole(), 20))


def test_the_rescue_answers_while_a_command_hangs() -> None:
    async def body(command: FakeQMP, rescue: FakeQMP, monitor: Monitor) -> None:
        waiting = asyncio.create_task(monitor.execute(qmp.stop(), 0.2))
        await command.got("stop")
        assert await monitor.rescue(qmp.query_yank(), 5) == {}
        with pytest.raises(OutcomeUnknown):
            await waiting
        assert (command.commands(), rescue.commands()) == (["stop"], ["query-yank"])

    play(body, answers={"stop": HANG})


def test_only_the_rescue_road_negotiates_out_of_band() -> None:
    async def body(command: FakeQMP, rescue: FakeQMP, _: Monitor) -> None:
        assert "arguments" not in command.received[0]
        assert rescue.received[0]["arguments"] == {"enable": ["oob"]}

    play(body)


def test_a_command_on_the_wrong_road_is_a_mistake_of_the_caller() -> None:
    async def body(_: FakeQMP, __: FakeQMP, monitor: Monitor) -> None:
        with pytest.raises(ValueError, match="out of band"):
            await monitor.execute(qmp.query_yank())
        with pytest.raises(ValueError, match="out of band"):
            await monitor.rescue(qmp.query_status())

    play(body)


def test_an_event_of_both_monitors_is_told_once() -> None:
    async def body(command: FakeQMP, rescue: FakeQMP, monitor: Monitor) -> None:
        with monitor.listen("STOP") as stream:
            rescue.event("STOP")
            command.event("STOP")
            command.event("RESUME")
            await monitor.execute(qmp.query_status(), 5)
            await monitor.rescue(qmp.query_yank(), 5)
            assert (await stream.next(5)).name == "STOP"
            with pytest.raises(DeadlineMissed):
                await stream.next(0.05)

    play(body)


def test_next_forgets_what_does_not_fit() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        with monitor.listen() as stream:
            for n in range(3):
                command.event("MIGRATION", {"n": n})
            event = await stream.next(5, where=lambda event: event.data["n"] == 1)
            assert event.data == {"n": 1}
            assert (await stream.next(5)).data == {"n": 2}

    play(body)


def test_an_overflow_drops_the_oldest_and_counts() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        with monitor.listen("STOP", bound=10) as stream:
            await command.flood("STOP", 25)
            await monitor.execute(qmp.query_status(), 5)
            assert (await stream.next(5)).data == {"n": 15}
            assert stream.dropped == 15

    play(body)


def test_a_stream_hears_only_while_it_is_open() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        stream = monitor.listen("STOP")
        command.event("STOP")
        await monitor.execute(qmp.query_status(), 5)
        with stream:
            command.event("STOP", {"n": 2})
            assert (await stream.next(5)).data == {"n": 2}
        assert not monitor.streams

    play(body)


def test_a_lost_connection_wakes_the_listener_after_the_last_event() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        with monitor.listen("SHUTDOWN") as stream:
            waiting = asyncio.create_task(stream.next(5, where=lambda event: event.data != {}))
            await asyncio.sleep(0)
            command.event("SHUTDOWN", {"guest": True})
            command.close()
            assert (await waiting).data == {"guest": True}
            with pytest.raises(Unreachable):
                await stream.next(5)
        await asyncio.wait_for(monitor.closed(), 60)

    play(body)


def test_losing_the_rescue_road_alone_is_noticed() -> None:
    async def body(_: FakeQMP, rescue: FakeQMP, monitor: Monitor) -> None:
        rescue.close()
        await asyncio.wait_for(monitor.closed(), 60)
        assert monitor.gone

    play(body)


@pytest.mark.parametrize("broken", ["command", "rescue"])
async def test_a_monitor_that_lacks_a_road_does_not_open(broken: str) -> None:
    bad = {"qmp_capabilities": CLOSE}
    async with (
        FakeQMP(bad if broken == "command" else None) as command,
        FakeQMP(bad if broken == "rescue" else None) as rescue,
    ):
        with pytest.raises(Unreachable):
            await open_monitor(command, rescue)
        assert command.client.fileno() == rescue.client.fileno() == -1


def test_the_recorder_knows_the_roads() -> None:
    seen: list[str] = []

    async def body(command: FakeQMP, rescue: FakeQMP, monitor: Monitor) -> None:
        seen.clear()
        command.event("STOP")
        rescue.event("STOP")
        await monitor.rescue(qmp.query_yank(), 5)
        await monitor.execute(qmp.query_status(), 5)

    play(body, record=lambda what, _: seen.append(what))
    assert sorted(seen) == [
        "command received",
        "command received",
        "command sent",
        "rescue received",
        "rescue sent",
    ]

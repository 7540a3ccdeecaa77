"""A session ends every call in time, with the right one of its three errors."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_qmp import (
    CLOSE,
    GARBAGE,
    GREETING,
    HALF,
    HALF_AND_CLOSE,
    HANG,
    FakeQMP,
    Refusal,
    open_session,
)

from coloctl.errors import CommandRefused, DeadlineMissed, OutcomeUnknown, Unreachable
from coloctl.qmp import command as qmp
from coloctl.qmp.command import Command
from coloctl.qmp.session import MAX_UNANSWERED, Event, Session

pytestmark = pytest.mark.unit

SHORT_S = 0.05


def play(
    answers: dict[str, Any] | None, body: Callable[[FakeQMP, Session], Awaitable[None]]
) -> None:
    """Runs ``body`` with a session on a fake that gives ``answers``."""

    async def whole() -> None:
        async with FakeQMP(answers) as fake, await open_session(fake) as session:
            await body(fake, session)

    asyncio.run(asyncio.wait_for(whole(), 20))


def test_the_answer_is_the_return_value() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        assert await session.execute(qmp.query_status(), 1) == {"status": "running"}
        assert fake.received[-1]["execute"] == "query-status"
        assert session.unanswered == 0

    play({"query-status": {"status": "running"}}, body)


def test_oob_is_asked_for_and_sent_as_exec_oob() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        await session.execute(qmp.query_yank(), 1)
        assert fake.received[0]["arguments"] == {"enable": ["oob"]}
        assert fake.received[-1]["exec-oob"] == "query-yank"

    play(None, body)


async def test_oob_is_not_asked_for_without_need() -> None:
    async with FakeQMP() as fake, await open_session(fake, oob=False):
        assert "arguments" not in fake.received[0]


def test_a_refusal_names_command_class_and_text() -> None:
    async def body(_: FakeQMP, session: Session) -> None:
        with pytest.raises(CommandRefused) as caught:
            await session.execute(qmp.yank([{"type": "migration"}]), 1)
        assert caught.value.command == "yank"
        assert caught.value.error_class == "DeviceNotFound"
        assert caught.value.desc == "no such instance"

    play({"yank": Refusal("no such instance", "DeviceNotFound")}, body)


@pytest.mark.parametrize("how", [HANG, HALF])
def test_no_answer_in_time_is_an_unknown_outcome(how: Any) -> None:
    async def body(_: FakeQMP, session: Session) -> None:
        with pytest.raises(OutcomeUnknown):
            await session.execute(qmp.stop(), SHORT_S)
        assert session.unanswered == 1

    play({"stop": how}, body)


@pytest.mark.parametrize("how", [CLOSE, HALF_AND_CLOSE, GARBAGE])
def test_a_connection_lost_after_sending_is_an_unknown_outcome(how: Any) -> None:
    async def body(_: FakeQMP, session: Session) -> None:
        with pytest.raises(OutcomeUnknown):
            await session.execute(qmp.stop(), 5)
        await asyncio.wait_for(session.closed(), 60)
        with pytest.raises(Unreachable):
            await session.execute(qmp.cont(), 5)

    play({"stop": how}, body)


def test_a_late_answer_goes_to_nobody() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        with pytest.raises(OutcomeUnknown):
            await session.execute(qmp.stop(), SHORT_S)
        waiting = asyncio.create_task(session.execute(qmp.query_status(), 5))
        fake.answer_late()
        assert await waiting == {"status": "paused"}
        assert session.unanswered == 0

    play({"stop": HANG, "query-status": {"status": "paused"}}, body)


def test_a_late_refusal_goes_to_nobody() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        with pytest.raises(OutcomeUnknown):
            await session.execute(qmp.stop(), SHORT_S)
        owed = fake.received[-1]["id"]
        fake.send({"error": {"class": "GenericError", "desc": "too late"}, "id": owed})
        assert await session.execute(qmp.query_status(), 5) == {}

    play({"stop": HANG}, body)


def test_a_cancelled_call_leaves_the_session_usable() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        waiting = asyncio.create_task(session.execute(qmp.stop(), 5))
        await fake.got("stop")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        fake.answer_late()
        assert await session.execute(qmp.query_status(), 5) == {"status": "paused"}

    play({"stop": HANG, "query-status": {"status": "paused"}}, body)


def test_nothing_is_sent_without_time_left() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        with pytest.raises(DeadlineMissed):
            await session.execute(qmp.stop(), 0)
        await session.execute(qmp.query_status(), 5)
        assert fake.commands() == ["query-status"]

    play(None, body)


def test_a_hanging_qemu_gets_a_bounded_number_of_commands() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        calls = [session.execute(qmp.query_status(), SHORT_S) for _ in range(MAX_UNANSWERED)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, OutcomeUnknown) for result in results)
        with pytest.raises(Unreachable):
            await session.execute(qmp.stop(), 5)
        fake.answer_late()
        fake.answers.clear()
        while session.unanswered:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await session.execute(qmp.stop(), 5)

    play({"query-status": HANG}, body)


def test_a_descriptor_travels_with_its_command() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        reading, writing = os.pipe()
        try:
            await session.execute(qmp.getfd("mig"), 5, fd=writing)
            os.write(fake.fds[0], b"x")
            assert os.read(reading, 1) == b"x"
            assert fake.received[-1]["arguments"] == {"fdname": "mig"}
        finally:
            os.close(reading)
            os.close(writing)

    play(None, body)


def test_a_second_descriptor_waits_for_the_first_to_be_taken() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        with open(os.devnull) as null:  # noqa: ASYNC230, PTH123
            with pytest.raises(OutcomeUnknown):
                await session.execute(qmp.getfd("one"), SHORT_S, fd=null.fileno())
            with pytest.raises(Unreachable):
                await session.execute(qmp.getfd("two"), 5, fd=null.fileno())
            fake.answer_late()
            fake.answers.clear()
            await session.execute(qmp.query_status(), 5)
            await session.execute(qmp.getfd("two"), 5, fd=null.fileno())
        assert len(fake.fds) == 2

    play({"getfd": HANG}, body)


def test_descriptors_sent_at_once_keep_their_order() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        pipes = [os.pipe() for _ in range(8)]
        try:
            await asyncio.gather(
                *(
                    session.execute(qmp.getfd(f"mig{n}"), 5, fd=writing)
                    for n, (_, writing) in enumerate(pipes)
                )
            )
            names = [m["arguments"]["fdname"] for m in fake.received if "fdname" in str(m)]
            for name, fd in zip(names, fake.fds, strict=True):
                os.write(fd, name.encode())
            assert [os.read(reading, 9).decode() for reading, _ in pipes] == [
                f"mig{n}" for n in range(8)
            ]
        finally:
            for fds in pipes:
                os.close(fds[0])
                os.close(fds[1])

    play(None, body)


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b'{"QMP": 1}\r\n', b'{"QM'])
async def test_what_is_no_monitor_is_unreachable(greeting: bytes) -> None:
    async with FakeQMP(greeting=greeting) as fake:
        with pytest.raises(Unreachable):
            await open_session(fake, deadline_s=SHORT_S)
        assert fake.client.fileno() == -1


async def test_events_may_come_before_the_greeting() -> None:
    """As from a QEMU that sends one while another of its threads takes the connection."""
    heard: list[Event] = []
    seen: list[str] = []

    early = b'{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}\r\n' * 2
    async with FakeQMP(greeting=early + GREETING) as fake:
        session = await open_session(
            fake, on_event=heard.append, record=lambda _, message: seen.extend(message)
        )
        async with session:
            assert session.greeting["QMP"]["capabilities"] == ["oob"]
            assert heard == []
            assert seen.count("event") == 2
            fake.event("STOP")
            await session.execute(qmp.query_status(), 1)
            assert [event.name for event in heard] == ["STOP"]


@pytest.mark.parametrize("early", [b'{"event": "RESET"}\r\n', b'{"return": {}}\r\n' + GREETING])
async def test_nothing_but_events_may_come_before_the_greeting(early: bytes) -> None:
    async with FakeQMP(greeting=early) as fake:
        with pytest.raises(Unreachable):
            await open_session(fake, deadline_s=SHORT_S)


@pytest.mark.parametrize("how", [HANG, CLOSE, GARBAGE])
async def test_a_monitor_that_does_not_negotiate_is_unreachable(how: Any) -> None:
    async with FakeQMP({"qmp_capabilities": how}) as fake:
        with pytest.raises(Unreachable):
            await open_session(fake, deadline_s=0.2)
        assert fake.client.fileno() == -1


async def test_a_monitor_without_oob_refuses() -> None:
    async with FakeQMP({"qmp_capabilities": Refusal("not supported")}) as fake:
        with pytest.raises(CommandRefused):
            await open_session(fake)


async def test_a_closed_socket_is_unreachable() -> None:
    async with FakeQMP(greeting=b"") as fake:
        fake.close()
        with pytest.raises(Unreachable):
            await open_session(fake)


async def test_closing_does_not_wait_for_a_peer_that_does_not_read() -> None:
    async with FakeQMP(deaf=True) as fake:
        session = await open_session(fake)
        huge = Command("qom-set", {"value": "x" * 4_000_000})
        with pytest.raises(OutcomeUnknown):
            await session.execute(huge, SHORT_S)
        with open(os.devnull) as null, pytest.raises(Unreachable):  # noqa: ASYNC230, PTH123
            await session.execute(qmp.getfd("mig"), 5, fd=null.fileno())
        await asyncio.wait_for(session.aclose(), 60)
        await asyncio.wait_for(session.closed(), 60)


async def test_a_descriptor_never_falls_into_the_middle_of_a_command() -> None:
    async with FakeQMP(deaf=True) as fake, await open_session(fake) as session:
        huge = Command("qom-set", {"value": "x" * 4_000_000})
        with pytest.raises(OutcomeUnknown):
            await session.execute(huge, SHORT_S)
        assert 0 < fake.drain() < 4_000_000
        # The kernel would take the descriptor now, with half of the command still here.
        with open(os.devnull) as null, pytest.raises(Unreachable):  # noqa: ASYNC230, PTH123
            await session.execute(qmp.getfd("mig"), 5, fd=null.fileno())


async def test_the_socket_is_closed_even_if_there_was_no_time_to_use_it() -> None:
    async with FakeQMP() as fake:
        with pytest.raises(Unreachable):
            await open_session(fake, deadline_s=0)
        assert fake.client.fileno() == -1


def test_closing_interrupts_what_is_under_way_and_can_be_repeated() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        waiting = asyncio.create_task(session.execute(qmp.stop(), 5))
        await fake.got("stop")
        await asyncio.gather(session.aclose(), session.aclose())
        with pytest.raises(OutcomeUnknown):
            await waiting
        with pytest.raises(Unreachable):
            await session.execute(qmp.cont(), 5)

    play({"stop": HANG}, body)


async def test_an_event_carries_qemus_own_time() -> None:
    events: list[Event] = []

    async with FakeQMP() as fake, await open_session(fake, events.append) as session:
        before = time.monotonic()
        fake.event("STOP", {"why": 1}, at=1234.5)
        await session.execute(qmp.query_status(), 5)
        assert (events[0].name, events[0].data, events[0].at_s) == ("STOP", {"why": 1}, 1234.5)
        assert before <= events[0].seen_s <= time.monotonic()


async def test_the_recorder_sees_both_directions_and_what_was_given_up() -> None:
    seen: list[tuple[str, Any]] = []

    async with FakeQMP({"stop": HANG}) as fake:
        record = lambda what, message: seen.append((what, dict(message)))  # noqa: E731
        async with await open_session(fake, record=record) as session:
            await session.execute(qmp.query_status(), 5)
            with pytest.raises(OutcomeUnknown):
                await session.execute(qmp.stop(), SHORT_S)
    assert [what for what, _ in seen[-4:]] == ["sent", "received", "sent", "abandoned"]
    assert seen[-1][1]["execute"] == "stop"


async def test_twenty_thousand_events_leave_nothing_behind() -> None:
    count = 0

    def on_event(_: Event) -> None:
        nonlocal count
        count += 1

    async with FakeQMP() as fake, await open_session(fake, on_event) as session:
        await fake.flood("STOP", 1000)
        await session.execute(qmp.query_status(), 20)
        before = sys.getallocatedblocks()
        await fake.flood("STOP", 19_000)
        await session.execute(qmp.query_status(), 60)
        kept = sys.getallocatedblocks() - before
        assert count == 20_000
        assert kept < 2000, f"{kept} blocks of memory kept"


def test_a_probe_waits_for_nobody_and_is_asked_once_at_a_time() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        answered: list[str] = []
        assert session.probe(qmp.query_yank(), lambda: answered.append("yank"))
        assert not session.probe(qmp.query_yank(), lambda: answered.append("twice"))
        assert session.probe(qmp.query_status(), lambda: answered.append("status"))
        await fake.got("query-status")
        assert session.unanswered == 2
        fake.answer_late()
        # Whatever is asked in the usual way is answered behind the probes.
        await session.execute(qmp.query_version(), 1)
        assert answered == ["yank", "status"]
        assert session.unanswered == 0
        assert session.probe(qmp.query_yank(), lambda: None)
        assert session.unanswered == 1

    play({"query-yank": HANG, "query-status": HANG}, body)


async def test_a_refused_probe_was_answered_and_no_probe_is_recorded() -> None:
    async def body() -> None:
        heard: list[Any] = []
        answers = {"query-yank": Refusal("not now")}
        async with (
            FakeQMP(answers) as fake,
            await open_session(fake, record=lambda what, message: heard.append(what)) as session,
        ):
            heard.clear()
            assert session.probe(qmp.query_yank(), lambda: heard.append("answer"))
            await session.execute(qmp.query_version(), 1)
            assert sorted(heard) == ["answer", "received", "sent"]

    await asyncio.wait_for(body(), 20)


def test_a_probe_of_a_lost_monitor_is_unreachable_and_closing_does_not_wait_for_one() -> None:
    async def body(fake: FakeQMP, session: Session) -> None:
        assert session.probe(qmp.query_yank(), lambda: None)
        await fake.got("query-yank")
        began = time.monotonic()
        await session.aclose()
        assert time.monotonic() - began < 15
        with pytest.raises(Unreachable):
            session.probe(qmp.query_yank(), lambda: None)

    play({"query-yank": HANG}, body)


@pytest.mark.parametrize("breaker", ["probe", "execute"])
async def test_what_qemu_sent_before_it_ended_is_received_though_a_write_failed_first(
    breaker: str,
) -> None:
    """The answer and two events wait in the kernel when the next beat writes to a dead QEMU."""
    seen: list[str] = []
    async with (
        FakeQMP({"system_powerdown": HANG}) as fake,
        await open_session(fake, on_event=lambda event: seen.append(event.name)) as session,
    ):
        pressing = asyncio.create_task(session.execute(qmp.system_powerdown(), 20))
        await fake.got("system_powerdown")
        fake.answer_late()
        fake.event("POWERDOWN")
        fake.event("SHUTDOWN", {"guest": True})
        fake.close()
        if breaker == "probe":  # before the loop has read anything
            session.probe(qmp.query_status(), lambda: None)
        else:
            with pytest.raises((OutcomeUnknown, Unreachable)):
                await session.execute(qmp.query_status(), 20)
        assert await pressing
        await session.closed()
        assert seen == ["POWERDOWN", "SHUTDOWN"]
        with pytest.raises(Unreachable):
            await session.execute(qmp.query_status(), 20)

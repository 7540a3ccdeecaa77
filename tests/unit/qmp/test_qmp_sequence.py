"""A sequence stops where it fails and tells exactly how far it came."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_qmp import HANG, FakeQMP, Refusal, open_monitor

from coloctl.clock import Deadline
from coloctl.errors import CommandRefused, DeadlineMissed, OutcomeUnknown
from coloctl.qmp import command as qmp
from coloctl.qmp.monitor import Monitor
from coloctl.qmp.sequence import Step, run

pytestmark = pytest.mark.unit

GONE = Refusal("object 'm0' not found")


def play(
    body: Callable[[FakeQMP, FakeQMP, Monitor], Awaitable[None]],
    answers: dict[str, Any] | None = None,
) -> None:
    async def whole() -> None:
        async with (
            FakeQMP(answers) as command,
            FakeQMP() as rescue,
            await open_monitor(command, rescue) as monitor,
        ):
            await body(command, rescue, monitor)

    asyncio.run(asyncio.wait_for(whole(), 20))


def test_steps_run_in_order_and_oob_takes_the_rescue_road() -> None:
    async def body(command: FakeQMP, rescue: FakeQMP, monitor: Monitor) -> None:
        steps = [Step(qmp.query_yank()), Step(qmp.stop(), "hold it"), Step(qmp.query_status())]
        transcript = await run(steps, monitor, deadline=Deadline(5))
        assert transcript.ok
        assert transcript.error is None
        assert transcript.answer("query-status") == {"status": "paused"}
        assert command.commands() == ["stop", "query-status"]
        assert rescue.commands() == ["query-yank"]
        assert len(transcript.lines()) == 3

    play(body, {"query-status": {"status": "paused"}})


def test_the_first_failure_ends_it() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        steps = [Step(qmp.stop()), Step(qmp.object_del("m0")), Step(qmp.cont())]
        with pytest.raises(CommandRefused):
            await run(steps, monitor, deadline=Deadline(5))
        assert command.commands() == ["stop", "object-del"]

    play(body, {"object-del": GONE})


def test_keep_going_tries_them_all() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        steps = [Step(qmp.object_del("m0")), Step(qmp.cont())]
        transcript = await run(steps, monitor, deadline=Deadline(5), keep_going=True)
        assert not transcript.ok
        assert [entry.ok for entry in transcript.entries] == [False, True]
        assert command.commands() == ["object-del", "cont"]

    play(body, {"object-del": GONE})


@pytest.mark.parametrize("word", ["not found", "GenericError"])
def test_a_tolerated_refusal_counts_as_done(word: str) -> None:
    async def body(_: FakeQMP, __: FakeQMP, monitor: Monitor) -> None:
        steps = [Step(qmp.object_del("m0"), tolerate=(word,)), Step(qmp.cont())]
        transcript = await run(steps, monitor, deadline=Deadline(5))
        assert transcript.ok
        assert transcript.entries[0].error is not None
        assert transcript.to_json()[0]["tolerated"] is True

    play(body, {"object-del": GONE})


def test_an_unknown_outcome_is_never_tolerated() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        steps = [Step(qmp.object_del("m0"), tolerate=("",), deadline_s=0.05), Step(qmp.cont())]
        with pytest.raises(OutcomeUnknown):
            await run(steps, monitor, deadline=Deadline(5))
        assert command.commands() == ["object-del"]

    play(body, {"object-del": HANG})


def test_all_steps_share_one_deadline() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        steps = [Step(qmp.stop()), Step(qmp.cont())]
        transcript = await run(steps, monitor, deadline=Deadline(0.05), keep_going=True)
        errors = [type(entry.error) for entry in transcript.entries]
        assert errors == [OutcomeUnknown, DeadlineMissed]
        assert command.commands() == ["stop"]

    play(body, {"stop": HANG})


def test_getfd_takes_its_descriptor_by_name() -> None:
    async def body(command: FakeQMP, _: FakeQMP, monitor: Monitor) -> None:
        reading, writing = os.pipe()
        try:
            steps = [Step(qmp.getfd("mig")), Step(qmp.migrate("fd:mig"))]
            await run(steps, monitor, deadline=Deadline(5), fds={"mig": writing})
            os.write(command.fds[0], b"x")
            assert os.read(reading, 1) == b"x"
        finally:
            os.close(reading)
            os.close(writing)

    play(body)


def test_a_transcript_is_json() -> None:
    async def body(_: FakeQMP, __: FakeQMP, monitor: Monitor) -> None:
        steps = [Step(qmp.object_del("m0")), Step(qmp.qom_set("/objects/m0", "status", "on"))]
        transcript = await run(steps, monitor, deadline=Deadline(5), keep_going=True)
        document = json.loads(json.dumps(transcript.to_json()))
        assert document[0]["error"]["code"] == "refused-by-qemu"
        assert document[1]["command"]["arguments"]["value"] == "on"
        assert document[1]["return"] == {}

    play(body, {"object-del": GONE})


def test_a_step_reads_as_its_command_and_reason() -> None:
    assert str(Step(qmp.stop(), "hold it")) == '{"execute": "stop"}    # hold it'

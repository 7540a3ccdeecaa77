"""A wait asks first, is woken by events, believes only queries, and ends in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from fake_qmp import CLOSE, HANG, FakeQMP, open_monitor

from coloctl.errors import DeadlineMissed, MonitorError, Unreachable
from coloctl.model.qapi import JobStatus, MigrationStatus, RunState
from coloctl.qmp import wait
from coloctl.qmp.monitor import Monitor

pytestmark = pytest.mark.unit


def play(
    body: Callable[[FakeQMP, Monitor], Awaitable[None]], answers: dict[str, Any] | None = None
) -> None:
    async def whole() -> None:
        async with (
            FakeQMP(answers) as command,
            FakeQMP() as rescue,
            await open_monitor(command, rescue) as monitor,
        ):
            await body(command, monitor)

    asyncio.run(asyncio.wait_for(whole(), 20))


def one_after_the_other(answers: Iterable[Any]) -> Callable[[Any], Any]:
    """An answer that changes with every call and stays at the last."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def job(status: str, error: str | None = None) -> list[dict[str, Any]]:
    line = {"id": "resync", "status": status, "current-progress": 1, "total-progress": 2}
    return [{**line, "error": error} if error else line]


def test_what_is_so_already_needs_no_event() -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        assert await wait.until_runstate(monitor, {RunState.RUNNING}, 5) is RunState.RUNNING

    play(body, {"query-status": {"status": "running"}})


def test_an_event_wakes_and_the_query_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "RECHECK_S", 60.0)

    async def body(fake: FakeQMP, monitor: Monitor) -> None:
        waiting = asyncio.create_task(wait.until_runstate(monitor, {RunState.RUNNING}, 15))
        await fake.got("query-status")
        fake.event("RESUME")
        assert await waiting is RunState.RUNNING
        assert len(fake.commands()) == 2

    states = [{"status": "colo"}, {"status": "running"}]
    play(body, {"query-status": one_after_the_other(states)})


def test_an_event_alone_is_not_believed() -> None:
    async def body(fake: FakeQMP, monitor: Monitor) -> None:
        waiting = asyncio.create_task(wait.until_runstate(monitor, {RunState.RUNNING}, 0.2))
        await fake.got("query-status")
        fake.event("RESUME")
        with pytest.raises(DeadlineMissed):
            await waiting

    play(body, {"query-status": {"status": "colo"}})


def test_a_fact_without_event_is_found_by_asking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "RECHECK_S", 0.01)

    async def body(_: FakeQMP, monitor: Monitor) -> None:
        state = await wait.until_runstate(monitor, {RunState.RUNNING}, 5)
        assert state is RunState.RUNNING

    states = [{"status": "paused"}, {"status": "paused"}, {"status": "running"}]
    play(body, {"query-status": one_after_the_other(states)})


def test_an_export_is_polled_until_it_is_gone() -> None:
    async def body(fake: FakeQMP, monitor: Monitor) -> None:
        await wait.until_export_gone(monitor, "exp0", 5)
        assert len(fake.commands()) == 3

    exports = [[{"id": "exp0"}, {"id": "exp1"}], [{"id": "exp0"}], [{"id": "exp1"}]]
    play(body, {"query-block-exports": one_after_the_other(exports)})


def test_an_export_that_stays_misses_the_deadline() -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        with pytest.raises(DeadlineMissed, match="exp0"):
            await wait.until_export_gone(monitor, "exp0", 0.1)

    play(body, {"query-block-exports": [{"id": "exp0"}]})


def test_a_hanging_query_misses_the_deadline() -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        with pytest.raises(DeadlineMissed):
            await wait.until_runstate(monitor, {RunState.RUNNING}, 0.1)

    play(body, {"query-status": HANG})


def test_a_lost_monitor_is_unreachable() -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        with pytest.raises(Unreachable):
            await wait.until_runstate(monitor, {RunState.RUNNING}, 5)

    play(body, {"query-status": CLOSE})


def test_a_job_is_followed_to_ready() -> None:
    looks = []

    async def body(fake: FakeQMP, monitor: Monitor) -> None:
        waiting = asyncio.create_task(
            wait.until_job(monitor, "resync", {JobStatus.READY}, 5, progress=looks.append)
        )
        await fake.got("query-jobs")
        fake.event("JOB_STATUS_CHANGE", {"id": "resync", "status": "ready"})
        assert (await waiting).status is JobStatus.READY

    play(body, {"query-jobs": one_after_the_other([job("running"), job("ready")])})
    assert [(look.current, look.total) for look in looks] == [(1, 2)]


@pytest.mark.parametrize(
    ("answer", "word"),
    [(job("concluded", "No space left on device"), "No space left"), ([], "null")],
)
def test_a_job_that_ended_otherwise_is_an_error_at_once(answer: Any, word: str) -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        with pytest.raises(MonitorError, match=word):
            await wait.until_job(monitor, "resync", {JobStatus.READY}, 15)

    play(body, {"query-jobs": answer})


def test_a_job_may_be_awaited_to_its_end() -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        ended = await wait.until_job(monitor, "resync", {JobStatus.CONCLUDED}, 5)
        assert ended.error == "No space left on device"

    play(body, {"query-jobs": job("concluded", "No space left on device")})


def test_a_failed_migration_is_an_error_at_once() -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        with pytest.raises(MonitorError, match="Connection refused"):
            await wait.until_migration(monitor, {MigrationStatus.COLO}, 15)

    play(body, {"query-migrate": {"status": "failed", "error-desc": "Connection refused"}})


def test_a_migration_that_has_no_status_yet_is_waited_for() -> None:
    async def body(fake: FakeQMP, monitor: Monitor) -> None:
        waiting = asyncio.create_task(wait.until_migration(monitor, {MigrationStatus.COLO}, 5))
        await fake.got("query-migrate")
        fake.event("MIGRATION", {"status": "colo"})
        assert await waiting is MigrationStatus.COLO

    play(body, {"query-migrate": one_after_the_other([{}, {"status": "colo"}])})


def test_a_poll_of_a_lost_monitor_is_unreachable() -> None:
    async def body(_: FakeQMP, monitor: Monitor) -> None:
        with pytest.raises(Unreachable):
            await wait.until_export_gone(monitor, "exp0", 5)

    play(body, {"query-block-exports": CLOSE})

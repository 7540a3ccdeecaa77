"""A guest that QEMU stopped for want of room: which disks missed something, and when it goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fakes import FakeHost, Log, in_colo

from coloctl.host.base import Completed
from coloctl.model.pair import NodeName
from coloctl.model.protection import Fact, Protection
from coloctl.model.qapi import RunState
from coloctl.qmp.session import Event
from coloctl.supervisor.held import Held
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit


class HeartbeatDriver:
    """What holds of each node."""

    def __init__(self) -> None:
        self.said: set[tuple[NodeName, str]] = set()

    def note(self, node: NodeName, notice: str) -> None:
        self.said.add((node, notice))

    def forget(self, node: NodeName, notice: str) -> None:
        self.said.discard((node, notice))


def held(state: PairState) -> tuple[Held, HeartbeatDriver]:
    vigil = HeartbeatDriver()
    return Held(state, vigil, asyncio.ensure_future), vigil  # type: ignore[arg-type]


def bad(child: str, sector: int, operation: str = "write") -> Event:
    data = {"node-name": child, "type": operation, "sector-num": sector, "sectors-count": 8}
    return Event("QUORUM_REPORT_BAD", data, 0.0, 0.0)


def failure(sector: int, disk: int = 0) -> Event:
    data = {"reference": f"colo-disk{disk}", "sector-num": sector, "sectors-count": 8}
    return Event("QUORUM_FAILURE", data, 0.0, 0.0)


#: What the primary's QEMU says, whether the replica had missed something before, and whether it has
#: in the end. The loop marks a replica at once.
WRITES: dict[str, tuple[list[Event], bool, bool]] = {
    "on no disk": ([bad("parent0", 0), bad("nbd0", 0), failure(0)], False, False),
    "on the primary's alone": ([bad("nbd0", 0)], False, True),
    "one on no disk, one on the primary's": (
        [bad("nbd0", 8), bad("parent0", 0), bad("nbd0", 0), failure(0)], False, True,
    ),
    "two on no disk": (
        [bad("parent0", 0), bad("nbd0", 0), failure(0), bad("nbd0", 8), bad("parent0", 8),
         failure(8)], False, False,
    ),
    "of another disk": ([bad("nbd0", 0), bad("nbd1", 0), failure(0, disk=1)], False, True),
    "after one that was missed before": ([bad("nbd0", 0), failure(0)], True, True),
    "a read": ([bad("nbd0", 0, "read"), failure(0)], False, False),
}  # fmt: skip


@pytest.mark.parametrize("what", WRITES)
async def test_a_replica_missed_what_was_acknowledged_and_nothing_else(
    tmp_path: Path, what: str
) -> None:
    events, before, after = WRITES[what]

    async with in_colo(tmp_path) as (state, _, _):
        holding, _ = held(state)
        primary, replica = state.seats["a"], state.seats["b"]
        replica.missed_write = before
        for event in events:
            holding.hear(primary, event)
            bad_child = str(event.data.get("node-name"))
            if bad_child.startswith("nbd") and event.data["type"] != "read":
                replica.missed_write = True  # as `Supervisor._on_bad_child` does
        assert replica.missed_write is after


async def test_a_guest_goes_on_by_itself_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    room = "0 4096\n0 4096\n"

    async def run(_self: FakeHost, argv: Any, **_: Any) -> Completed:
        assert argv[0] == "stat"
        return Completed(0, room, "")

    monkeypatch.setattr(FakeHost, "run", run)
    async with in_colo(tmp_path, log=log) as (state, _, _):
        holding, vigil = held(state)
        primary = state.seats["a"]
        primary.view = replace(primary.view, run_state=RunState.IO_ERROR)
        holding.tick()  # in COLO it is for the remedy to act
        assert ("a", "guest-held") in vigil.said and "cont" not in " ".join(log)
        for fact in (Fact.NODE_LOST, Fact.SURVIVOR_RUNS):
            state.note(fact, "The secondary was given up.")
        assert state.protection is Protection.UNPROTECTED
        vigil.note("a", "local-write-error")
        holding.tick()
        await asyncio.sleep(0.05)
        assert "no room for a write" in state.view().reason
        assert "a: cont" not in log
        room = "0 4096\n1000 4096\n"  # of one filesystem, and not of the other
        holding.tick()
        await asyncio.sleep(0.05)
        assert "a: cont" not in log
        room = "1000 4096\n1000 4096\n"
        holding.tick()
        await asyncio.sleep(0.05)
        assert log.count("a: cont") == 1
        holding.tick()  # too soon for another try
        await asyncio.sleep(0.05)
        assert log.count("a: cont") == 1
        primary.view = replace(primary.view, run_state=RunState.RUNNING)
        holding.tick()
        assert not vigil.said and "until there was room" in state.view().reason

"""Every kind of work at once on a real guest that loses its host: its clients lose nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.evidences import around, checked

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.evidence.audit import audit
from coloctl.chaos.evidence.records import Audit, WorkloadRecord
from coloctl.chaos.faults.processes import Kill
from coloctl.chaos.run.environment import environment
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Params, Scenario, Workload
from coloctl.chaos.workloads import WORKLOADS
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.chaos.workloads.memory_writer import MemoryParams, arguments
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.lab import guest, layout, qemu

pytestmark = pytest.mark.guest

CLIENTS = 2
PATIENCE_S = 60.0
SCENARIO = Scenario(
    title="Every kind of work",
    why="Each kind loses something of its own.",
    workloads=tuple(Workload(kind=kind, clients=CLIENTS) for kind in WORKLOADS),
    pair={"policy": {"auto_reprotect": False}},
    expect={"connections_survive": Params()},
)


def more(works: Sequence[ClientProgram], count: int) -> None:
    """Every workload has seen so many more operations acknowledged."""
    goals = [work.acknowledged() + count for work in works]
    give_up = time.monotonic() + PATIENCE_S
    while slow := [w for w, goal in zip(works, goals, strict=True) if w.acknowledged() < goal]:
        assert time.monotonic() < give_up, slow
        time.sleep(0.05)


def over(spec: Workload, running: ClientProgram) -> WorkloadRecord:
    return WorkloadRecord(spec, running.finish(), running.read_back())


def done(history: list[Op], f: str = "") -> list[Op]:
    return [op for op in history if op.outcome is OpStatus.OK and (not f or op.f == f)]


@pytest.fixture(scope="module")
def run(
    guest_image: guest.GuestImage, qemu_builds: Callable[[str], qemu.Build]
) -> tuple[Mapping[str, WorkloadRecord], list[Audit], float, list[Op]]:
    """What clients did around the death of the guest's host, and the guest's audits beside it."""
    where = Testbed(qemu_builds("11.1").binary, "tcg", guest_image, f"t{os.getpid()}-work")
    with environment(where, SCENARIO) as play, contextlib.ExitStack() as kills:
        play.boot()
        play.come("booted")
        play.protect()
        specs, works = zip(*play.works.values(), strict=True)
        words = [sys.executable, *arguments(layout.GUEST, MemoryParams(mib=1))]
        memory = ClientProgram(play.lab, words)
        kills.callback(memory.kill)
        more((*works, memory), 2)
        more(works, 20)
        audits = [audit(play.lab)]
        with contextlib.closing(Kill(play.pair, "primary", Params())) as kill:
            fault_at_s = kill.inject().at_s
            play.until(lambda view: view.protection == "unprotected")
        more(works, 20)
        more((memory,), 2)
        audits.append(audit(play.lab))
        with ThreadPoolExecutor(len(works)) as pool:
            kept = list(pool.map(over, specs, works))
        changed = memory.finish()
    return {work.spec.name: work for work in kept}, audits, fault_at_s, changed


def history_of(run: Any, name: str) -> list[Op]:
    return list(run[0][name].history)


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "udp-sequence"])
def test_connections_survive(run: Any, name: str) -> None:
    works, _, fault_at_s, _ = run
    verdict = checked("connections_survive", around(fault_at_s, works[name]))
    assert verdict.validity is Validity.VALID, verdict


def test_no_record_is_lost_and_disk_and_memory_agree(run: Any) -> None:
    works, audits, fault_at_s, _ = run
    work = works["redis-appends"]
    verdict = checked("no_lost_acks", around(fault_at_s, work))
    assert verdict.validity is Validity.VALID, verdict
    before, after = audits
    assert before.boot_id == after.boot_id
    for each in audits:
        assert each.disk == each.memory
        assert all(each.disk[client] for client in range(CLIENTS))


def test_the_memory_of_a_bench_is_changed_before_and_after_the_failover(run: Any) -> None:
    fault_at_s, changed = run[2:]
    assert not [op for op in changed if op.outcome is OpStatus.FAIL]
    rounds = [op for op in changed if op.outcome is OpStatus.OK]
    assert [op.n for op in rounds] == list(range(len(rounds)))
    assert rounds[0].at_s < fault_at_s < rounds[-1].at_s


def test_the_sum_of_the_money_holds(run: Any) -> None:
    work = run[0]["redis-transfers"]
    total = sum(work.kept["balances"].values())
    assert {total} == {sum(op.value.values()) for op in done(work.history, "read")}
    for client, last in work.kept["done"].items():
        assert last == max(op.n for op in done(work.history, "transfer") if op.client == client)


def test_registers_hold_what_somebody_wrote(run: Any) -> None:
    work = run[0]["redis-registers"]
    written = {op.value for op in work.history if op.f == "write"}
    written |= {op.value[1] for op in work.history if op.f == "cas"}
    assert set(work.kept.values()) <= written
    assert {op.value for op in done(work.history, "read")} <= written | {None}


def test_the_web_server_never_started_again(run: Any) -> None:
    answers = {tuple(op.value) for op in done(history_of(run, "http"))}
    assert answers == {(200, run[1][0].boot_id)}


def test_streams_are_whole(run: Any) -> None:
    history = history_of(run, "tcp-stream")
    sent = [(op.client, op.n) for op in history if op.outcome is OpStatus.INVOKE]
    assert sorted((op.client, op.n) for op in done(history)) == sorted(sent)


def test_datagrams_come_back_or_are_told_as_lost(run: Any) -> None:
    history = history_of(run, "udp-sequence")
    sent = {(op.client, op.n) for op in history if op.outcome is OpStatus.INVOKE}
    fates = [(op.client, op.n) for op in history if op.outcome in ("ok", "info") and not op.f]
    assert sorted(fates) == sorted(sent)
    assert not [op for op in history if op.outcome is OpStatus.FAIL]


def test_acknowledged_blocks_are_on_the_disk(run: Any) -> None:
    work = run[0]["disk-writer"]
    for op in done(work.history):
        assert work.kept[op.client][op.n] == op.value

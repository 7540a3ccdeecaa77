"""Every kind of work at once on a real guest that loses its host: its clients lose nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.evidences import around, checked

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.evidence.audit import audit
from coloctl.chaos.evidence.records import Audit, WorkloadRecord
from coloctl.chaos.evidence.takeover import awaited
from coloctl.chaos.run import testbed
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import WORKLOADS, start_workload
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import Acts
from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab

pytestmark = pytest.mark.guest

CLIENTS = 2
PATIENCE_S = 60.0
SPECS = [
    Workload(name=kind, kind=kind, clients=CLIENTS, numbered_from=10 * n)
    for n, kind in enumerate(WORKLOADS)
]


def more(works: Mapping[str, ClientProgram], count: int) -> None:
    """Every workload has seen so many more operations acknowledged."""
    goals = {name: work.acknowledged() + count for name, work in works.items()}
    give_up = time.monotonic() + PATIENCE_S
    while slow := [name for name, work in works.items() if work.acknowledged() < goals[name]]:
        assert time.monotonic() < give_up, slow
        time.sleep(0.05)


@contextlib.contextmanager
def at_work(lab: Lab) -> Iterator[Mapping[str, ClientProgram]]:
    with contextlib.ExitStack() as stack:
        works = {}
        for spec in SPECS:
            works[spec.name] = start_workload(lab, spec)
            stack.callback(works[spec.name].kill)
        yield works


def over(spec: Workload, running: ClientProgram) -> WorkloadRecord:
    return WorkloadRecord(spec, running.finish(), running.read_back())


def done(history: list[Op], f: str = "") -> list[Op]:
    return [op for op in history if op.outcome is OpStatus.OK and (not f or op.f == f)]


@pytest.fixture(scope="module")
def played(
    guest_image: guest.GuestImage, qemu_builds: Callable[[str], qemu.Build]
) -> tuple[Mapping[str, WorkloadRecord], list[Audit], float]:
    """What clients did around the death of the guest's host, and the guest's audits beside it."""
    staged = Testbed(
        qemu=Path(qemu_builds("11.1").binary),
        accel="tcg",
        guest=guest_image,
        name=f"t{os.getpid()}-work",
        append_options={"services": True},
    )
    with (
        testbed.lab(staged) as lab,
        testbed.folder(staged) as home,
        testbed.pair(staged, lab, home) as client,
    ):
        testbed.boot(staged, client)
        with at_work(lab) as works:
            Acts(client).start(wait_s=testbed.PROTECT_DEADLINE_S)
            more(works, 20)
            audits = [audit(lab)]
            nodes = Acts(client).status_document()["nodes"]
            (pid,) = (node["pid"] for node in nodes if node["role"] == "primary")
            fault_at_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            awaited(client, lambda event: None)
            more(works, 20)
            audits.append(audit(lab))
            with ThreadPoolExecutor(len(SPECS)) as pool:
                kept = list(pool.map(over, SPECS, works.values()))
    return {work.spec.name: work for work in kept}, audits, fault_at_s


def history_of(played: Any, name: str) -> list[Op]:
    return list(played[0][name].history)


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "udp-sequence"])
def test_connections_survive(played: Any, name: str) -> None:
    works, _, fault_at_s = played
    verdict = checked("connections_survive", around(fault_at_s, works[name]))
    assert verdict.validity is Validity.VALID, verdict


def test_no_record_is_lost_and_disk_and_memory_agree(played: Any) -> None:
    works, audits, fault_at_s = played
    work = works["redis-appends"]
    verdict = checked("no_lost_acks", around(fault_at_s, work))
    assert verdict.validity is Validity.VALID, verdict
    before, after = audits
    assert before.boot_id == after.boot_id
    for each in audits:
        assert each.disk == each.memory
        assert all(each.disk[client] for client in range(CLIENTS))


def test_the_sum_of_the_money_holds(played: Any) -> None:
    work = played[0]["redis-transfers"]
    total = sum(work.kept["balances"].values())
    assert {total} == {sum(op.value.values()) for op in done(work.history, "read")}
    for client, last in work.kept["done"].items():
        assert last == max(op.n for op in done(work.history, "transfer") if op.client == client)


def test_registers_hold_what_somebody_wrote(played: Any) -> None:
    work = played[0]["redis-registers"]
    written = {op.value for op in work.history if op.f == "write"}
    written |= {op.value[1] for op in work.history if op.f == "cas"}
    assert set(work.kept.values()) <= written
    assert {op.value for op in done(work.history, "read")} <= written | {None}


def test_the_web_server_never_started_again(played: Any) -> None:
    answers = {tuple(op.value) for op in done(history_of(played, "http"))}
    assert answers == {(200, played[1][0].boot_id)}


def test_streams_are_whole(played: Any) -> None:
    history = history_of(played, "tcp-stream")
    sent = [(op.client, op.n) for op in history if op.outcome is OpStatus.INVOKE]
    assert sorted((op.client, op.n) for op in done(history)) == sorted(sent)


def test_datagrams_come_back_or_are_told_as_lost(played: Any) -> None:
    history = history_of(played, "udp-sequence")
    sent = {(op.client, op.n) for op in history if op.outcome is OpStatus.INVOKE}
    fates = [(op.client, op.n) for op in history if op.outcome in ("ok", "info") and not op.f]
    assert sorted(fates) == sorted(sent)
    assert not [op for op in history if op.outcome is OpStatus.FAIL]


def test_acknowledged_blocks_are_on_the_disk(played: Any) -> None:
    work = played[0]["disk-writer"]
    for op in done(work.history):
        assert work.kept[op.client][op.n] == op.value

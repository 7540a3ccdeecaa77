"""A link that carries less than the guest changes: said with the figures, and the guest runs on.

Method: a program in a real guest changes 128 MiB of its memory without a pause, and the kernel
lets 10 MB/s pass each way over the lab's replication link. Only the time after which the supervisor
looks at what is left is shorter than an operator's pair has it. In COLO the link becomes slow
beneath a guest that is protected already.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.clients import ask, booted, guest_spec
from support.pairs import Stage, supervised

from coloctl.chaos.workloads.memory_writer import MemoryParams, arguments
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.colo import convergence
from coloctl.errors import MigrationFailed
from coloctl.lab import guest, layout, qemu
from coloctl.lab.link import index_of, netlink
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.guest

#: After so long it is looked at what is left, seconds.
LOOK_S = 5.0
#: All memory has to go over such a link before it is known to be too slow, on a busy machine.
PATIENCE_S = 240.0
#: The token bucket of each end; more than leaves within 0.1 s is dropped, as a switch does.
BUCKET = {"burst": 65536, "latency": "100ms"}
#: What each of two clients changes, again and again: together 13 s of the link.
MEMORY = MemoryParams(mib=64, pause_ms=0)
FIGURES = re.compile(
    r"The link to node b on .+ carries \d+ MB/s\. The guest changes \d+ MB(/s of its memory, and "
    r"\d+ MB were left to send| of its memory again and again): each checkpoint would stop it for "
    r"\d+ s\."
)


SLOW = re.compile(
    r"The guest has been stopped for a checkpoint for \d+ ms \(limit \d+ ms\)\. The guest changed "
    r"more than \d+ MB of its memory since the last checkpoint, and the replication link carries "
    r"\d+ MB/s: each checkpoint would stop it for as long\."
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-slow") as lab:
        yield lab


@pytest.fixture
def spec(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> PairSpec:
    spec = guest_spec(lab, guest_image, tmp_path, qemu_builds("11.1"))
    return replace(spec, policy=replace(spec.policy, auto_failover=True, auto_reprotect=True))


@pytest.fixture
def writer(lab: Lab) -> Iterator[Callable[[], ClientProgram]]:
    """Begins to change the guest's memory; ended with the test."""
    begun: list[ClientProgram] = []

    def begin() -> ClientProgram:
        who = (sys.executable, *arguments(layout.GUEST, MEMORY), "--clients", "2")
        begun.append(ClientProgram(lab, who))
        return begun[-1]

    yield begin
    for one in begun:
        one.kill()


@contextlib.contextmanager
def slow(lab: Lab, rate: str = "80mbit") -> Iterator[None]:
    """The replication link carries less meanwhile."""
    link = lab.link("replication")
    for end in link.ends:
        netlink(end.namespace, partial(limit, device=end.device, rate=rate))
    yield
    link.heal()


def limit(ip: Any, device: str, rate: str) -> None:
    ip.tc("add", "tbf", index_of(ip, device), **BUCKET, rate=rate)


async def until(stage: Stage, true: Callable[[], bool]) -> None:
    """Wait for longer than a test usually does: a slow link takes its time."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_guest_that_changes_more_than_the_link_carries_is_protected_when_it_can_be(
    spec: PairSpec,
    lab: Lab,
    writer: Callable[[], ClientProgram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convergence, "CONVERGE_DEADLINE_S", LOOK_S)
    async with supervised(spec) as stage:
        state = stage.state
        await stage.start(protected=False)
        await booted(stage)
        writing = writer()
        await until(stage, lambda: writing.acknowledged() >= 4)  # its memory is there
        with slow(lab):
            with pytest.raises(MigrationFailed) as refused:
                await stage.start()
            assert FIGURES.search(refused.value.message)
            assert state.protection is Protection.UNPROTECTED
            assert FIGURES.search(state.reason), state.reason
            assert "`coloctl host check" in (refused.value.hint or "")
            assert await ask(lab, "PING") == "+PONG"
            done = writing.acknowledged()
            await until(stage, lambda: writing.acknowledged() > done)
        await until(stage, lambda: state.protection is Protection.COLO and not state.act)
        assert await ask(lab, "PING") == "+PONG"
        assert not state.view().exposure
        writing.finish()
        await acts.stop(state, force=True)


async def test_a_link_that_becomes_slow_in_colo_is_waited_for_while_data_goes_over(
    spec: PairSpec, lab: Lab, writer: Callable[[], ClientProgram]
) -> None:
    """A checkpoint of seconds is no hang; one of more than ten is given up with the figures."""
    spec = replace(spec, policy=replace(spec.policy, auto_reprotect=False))
    async with supervised(spec) as stage:
        state = stage.state
        await stage.start(protected=False)
        await booted(stage)
        await stage.start()
        serves = stage.primary.node
        writing = writer()
        await until(stage, lambda: writing.acknowledged() >= 4)
        await stage.checkpoints(3)
        with slow(lab, "160mbit"):
            # Memory fills the link for seconds, datagrams get lost: it is no broken link.
            done = writing.acknowledged()
            await stage.checkpoints(4)
            await until(stage, lambda: writing.acknowledged() > done)
            assert state.protection is Protection.COLO, state.reason
        with slow(lab, "8mbit"):
            await until(stage, lambda: state.protection is Protection.UNPROTECTED)
            assert SLOW.search(state.reason), state.reason
            assert stage.primary.node == serves  # its guest loses nothing and goes on
        assert await ask(lab, "PING") == "+PONG"
        writing.kill()  # its clients may have given up: the guest stood still for seconds
        await stage.start()
        assert state.protection is Protection.COLO
        await acts.stop(state, force=True)

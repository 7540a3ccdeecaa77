"""A real guest with real clients loses a host, and its clients lose nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.clients import booted, clients, guest_spec
from support.pairs import Stage, supervised

from coloctl.chaos.checks import records, streams
from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec, Role
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.guest


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A fresh one per test, because it counts checksums from its beginning."""
    with Lab.up(f"t{os.getpid()}-pair") as lab:
        yield lab


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("g")


@pytest.fixture
def spec(
    lab: Lab,
    guest_image: guest.GuestImage,
    folder: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> PairSpec:
    return guest_spec(lab, guest_image, folder, qemu_builds("11.1"))


async def protected(stage: Stage) -> None:
    """The guest booted, and a secondary was made while it ran."""
    await stage.start(protected=False)
    await booted(stage)
    await stage.start()


async def inject(stage: Stage, lab: Lab, fault: str) -> tuple[Role, float]:
    """The fault has happened in the middle of a checkpoint: who is to survive, and when it was."""
    primary, secondary = stage.primary, stage.secondary
    with primary.monitor.listen("STOP") as events:
        await events.next(30)
    at_s = time.monotonic()
    match fault:
        case "the primary is killed":
            primary.process.signal(signal.SIGKILL)
        case "the secondary is killed":
            secondary.process.signal(signal.SIGKILL)
        case "the primary freezes":
            primary.process.signal(signal.SIGSTOP)
        case "the secondary freezes":
            secondary.process.signal(signal.SIGSTOP)
        case "the link is cut":
            lab.link("replication").cut()
    return Role.PRIMARY if "secondary" in fault else Role.SECONDARY, at_s


@pytest.mark.parametrize(
    "fault",
    [
        "the primary is killed",
        "the secondary is killed",
        "the primary freezes",
        "the secondary freezes",
        "the link is cut",
    ],
)
async def test_clients_lose_nothing(spec: PairSpec, lab: Lab, folder: Path, fault: str) -> None:
    async with supervised(spec) as stage:
        await protected(stage)
        with clients(lab, folder / "history") as at_work:
            await at_work.acknowledged(20)
            await stage.checkpoints(2)
            role, fault_at_s = await inject(stage, lab, fault)
            survivor = stage.state.vm_of(role)
            await acts.failover(stage.state, survivor.node)
            assert stage.state.protection is Protection.UNPROTECTED
            await at_work.acknowledged(20)
            verdicts = at_work.verdicts(fault_at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        assert lab.bad_checksums() == 0
        assert await acts.stop(stage.state, force=False) == "guest shut down"


async def late_connections(stage: Stage, lab: Lab, folder: Path, count: int) -> tuple[int, int]:
    """Clients connect to a protected guest, and its primary dies before any further checkpoint.

    Answers how many connections survived, and how many checkpoints came in between all the same.
    """
    with clients(lab, folder / "history", count, pause_ms=2000) as at_work:
        await at_work.connected()
        await at_work.acknowledged(1)
        before = stage.state.seats["a"].stats.count
        stage.primary.process.signal(signal.SIGKILL)
        await stage.until(lambda: stage.state.protection is Protection.FAILOVER)
        between = stage.state.seats["a"].stats.count - before
        await acts.failover(stage.state, None)
        await at_work.acknowledged(1)
        history = at_work.end()
        assert not records.lost(history, at_work.read_back())
    return count - len(streams.broken_connections(history)), between


def unhurried(spec: PairSpec, *, guard: bool) -> PairSpec:
    """No checkpoint comes by itself while a test lasts, once the pair is not cautious any more."""
    rare = replace(spec.checkpoint, delay_ms=20_000, guard_first_connection=guard)
    return replace(spec, checkpoint=rare)


async def test_connections_opened_under_colo_survive_without_another_checkpoint(
    spec: PairSpec, lab: Lab, folder: Path
) -> None:
    """The guest drew its TCP secrets before: its one loopback connection did that."""

    async with supervised(unhurried(spec, guard=False)) as stage:
        await protected(stage)
        assert await late_connections(stage, lab, folder, 20) == (20, 0)
        assert lab.bad_checksums() == 0


async def test_a_guest_that_draws_its_secrets_late_is_covered_by_the_guard(
    lab: Lab,
    guest_image: guest.GuestImage,
    folder: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> None:
    """As other people's guests do: their first connection comes when they are protected already."""
    build = qemu_builds("11.1")
    spec = guest_spec(lab, guest_image, folder, build, loopback=False, syncookies=1)

    async with supervised(unhurried(spec, guard=True)) as stage:
        await protected(stage)
        assert stage.state.cautious
        with clients(lab, folder / "first", 1) as first:
            await first.connected()
            await stage.until(lambda: not stage.state.cautious)
            assert (await late_connections(stage, lab, folder, 4))[0] == 4
            assert not streams.broken_connections(first.end())
        assert lab.bad_checksums() == 0


async def test_a_protected_guest_is_shut_down_in_order(spec: PairSpec) -> None:
    """From COLO: the secondary is let go first, so that it never takes over."""

    async with supervised(spec) as stage:
        await protected(stage)
        assert await acts.stop(stage.state, force=False) == "guest shut down"
        assert stage.state.protection is Protection.DOWN

"""A guest that serves lives on when it cannot be protected, whatever stands in the way.

Goal: no start, and no attempt to protect, ends or holds a guest that may have answered clients.
Method: real pairs of firmware guests; an obstacle is put in the way at a step that the act reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.pairs import (
    PATIENCE_S,
    Stage,
    firmware_spec,
    guest_writes,
    on_pair,
)

from coloctl.colo import coverage
from coloctl.colo import protect as protecting
from coloctl.errors import LaunchError, PreconditionFailed, ReplicationError, RunsAlone
from coloctl.lab import qemu
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.model.qapi import RunState
from coloctl.qmp.wait import until_runstate
from coloctl.supervisor import acts

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    """The one of the matrix that holds COLO under every accelerator."""
    return qemu_builds("11.1")


def unequal(spec: PairSpec, build: qemu.Build) -> None:
    """Give node a's disk a content of its own, so that the guest is not held at its beginning."""
    path = spec.disks[0].image["a"]
    subprocess.run([build.binary.with_name("qemu-io"), "-c", "write -P 7 0 64k", path], check=True)


@contextlib.contextmanager
def taken(spec: PairSpec, build: qemu.Build) -> Iterator[Callable[[], None]]:
    """A function that opens node b's image, whose lock no secondary gets then."""
    with contextlib.ExitStack() as stack:

        def take() -> None:
            argv = [build.binary.with_name("qemu-io"), spec.disks[0].image["b"]]
            holder = stack.enter_context(
                subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            stack.callback(holder.kill)
            assert holder.stdout is not None
            assert holder.stdout.read(7) == b"qemu-io"  # it asks for a command: the image is open

        yield take


async def serves(stage: Stage) -> bool:
    return (await stage.primary.observe()).run_state is RunState.RUNNING


def test_a_start_that_cannot_protect_leaves_the_guest_and_protects_it_later(
    build: qemu.Build, tmp_path: Path
) -> None:
    spec = firmware_spec(tmp_path, build, "tcg", circular=True)

    async def story(stage: Stage) -> None:
        await asyncio.to_thread(unequal, spec, build)
        with taken(spec, build) as take:
            stage.at_step("primary", take)
            with pytest.raises(RunsAlone, match="runs on node a, but it is not protected") as alone:
                await stage.start()
            assert str(spec.disks[0].image["b"]) in alone.value.message
            assert alone.value.exit_code == 3
            assert stage.state.protection is Protection.UNPROTECTED
            assert await serves(stage)
            pid = stage.primary.process.identity.pid
        await stage.until_protection(Protection.COLO)
        assert stage.primary.process.identity.pid == pid

    on_pair(spec, build, story)


def test_a_held_guest_that_has_run_in_colo_lives_on_too(build: qemu.Build, tmp_path: Path) -> None:
    spec = firmware_spec(tmp_path, build, "tcg", automatic=True)

    async def story(stage: Stage) -> None:
        def die_once_it_runs() -> None:
            secondary = stage.secondary.process.identity.pid

            async def kill() -> None:
                await until_runstate(stage.primary.monitor, {RunState.RUNNING}, PATIENCE_S)
                os.kill(secondary, signal.SIGKILL)

            deeds.append(asyncio.ensure_future(kill()))

        deeds: list[asyncio.Future[None]] = []
        stage.at_step("first checkpoint", die_once_it_runs)
        # It dies before the first checkpoint is complete; else the pair fails over.
        with contextlib.suppress(RunsAlone):
            await stage.start()
        await deeds[0]
        await stage.until_protection(Protection.UNPROTECTED)
        assert await serves(stage)

    on_pair(spec, build, story)


def test_a_guest_that_never_ran_is_undone(build: qemu.Build, tmp_path: Path) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")

    async def story(stage: Stage) -> None:
        with taken(spec, build) as take:
            stage.at_step("primary", take)
            with pytest.raises((ReplicationError, PreconditionFailed, LaunchError)) as failed:
                await stage.start()
        assert not isinstance(failed.value, RunsAlone)
        assert stage.state.protection is Protection.DOWN
        assert not stage.state.running()

    on_pair(spec, build, story)


def scratch_disk(tmp_path: Path) -> list[str]:
    """Arguments for a writable disk that the pair file does not know of."""
    (tmp_path / "scratch.raw").write_bytes(bytes(1 << 20))
    node = f"driver=raw,node-name=scratch0,file.driver=file,file.filename={tmp_path}/scratch.raw"
    return ["-blockdev", node, "-device", "virtio-blk-pci,drive=scratch0"]


def test_a_writable_disk_that_is_not_replicated_is_refused_by_name(
    build: qemu.Build, tmp_path: Path
) -> None:
    spec = firmware_spec(tmp_path, build, "tcg", extra_args=tuple(scratch_disk(tmp_path)))

    async def story(stage: Stage) -> None:
        with pytest.raises(ReplicationError, match=r"scratch\.raw") as refused:
            await stage.start()
        assert refused.value.hint and "[[disk]]" in refused.value.hint
        assert not stage.state.running()
        await stage.start(protected=False)
        with pytest.raises(ReplicationError, match="not in"):
            await acts.reprotect(stage.state, stage.supervisor.watch, stage.supervisor.entered)
        assert await serves(stage)

    on_pair(spec, build, story)


def test_a_device_that_cannot_migrate_is_refused_by_name(build: qemu.Build, tmp_path: Path) -> None:
    memory = "memory-backend-ram,id=shared0,size=1M,share=on"
    extra = ("-object", memory, "-device", "ivshmem-plain,memdev=shared0")
    spec = firmware_spec(tmp_path, build, "tcg", extra_args=extra)

    async def story(stage: Stage) -> None:
        with pytest.raises(ReplicationError, match="ivshmem"):
            await stage.start()

    on_pair(spec, build, story)


def test_a_guest_is_held_for_seconds_only(
    build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What wedged a guest in ``finish-migrate``: a writable disk on both sides, unreplicated."""

    async def nothing_asked(*_: object) -> None:
        return None

    monkeypatch.setattr(coverage, "require_covered", nothing_asked)
    monkeypatch.setattr(protecting, "HELD_DEADLINE_S", 2.0)
    spec = firmware_spec(tmp_path, build, "tcg", extra_args=tuple(scratch_disk(tmp_path)))

    async def story(stage: Stage) -> None:
        await stage.start(protected=False)
        await guest_writes(stage.primary, 3, 0, 65536)
        with pytest.raises(ReplicationError, match="stood still for 2 s"):
            await acts.reprotect(stage.state, stage.supervisor.watch, stage.supervisor.entered)
        assert await serves(stage)

    on_pair(spec, build, story)

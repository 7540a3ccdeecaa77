"""A pair whose other node is reached by a real ssh: all that a pair does, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import sshhost
from support.clients import booted, clients
from support.pairs import PATIENCE_S, Stage, supervised

from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.lab import guest, netns, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.model.timeline import Timeline
from coloctl.model.verified import VerifyOutcome
from coloctl.supervisor import acts
from coloctl.vm import VM

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

#: A start boots the guest under TCG; a busy machine has been seen to need a minute.
VERB_S = 240.0


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A fresh one per test, because it counts checksums from its beginning."""
    with Lab.up(f"t{os.getpid()}-ssh") as lab:
        yield lab


async def protected(stage: Stage) -> None:
    """The guest booted, and a secondary was made while it ran."""
    await stage.start(protected=False)
    await booted(stage)
    await stage.start()


def kill(vm: VM) -> None:
    """Kill a QEMU on either machine: in the lab both have one kernel."""
    os.kill(vm.process.identity.pid, signal.SIGKILL)


def switchover(stage: Stage) -> Awaitable[Timeline]:
    return acts.switchover(stage.state, stage.supervisor.watch, stage.supervisor.entered)


async def protected_again(stage: Stage, after: int) -> None:
    """The pair has failed over since ``after``, and is in COLO again."""
    await stage.until(
        lambda: stage.state.generation > after and stage.state.protection is Protection.COLO
    )


async def test_a_pair_over_ssh_does_all_that_a_pair_does(
    ssh_spec: PairSpec, lab: Lab, tmp_path: Path
) -> None:
    """Each QEMU dies once, each node serves, and the clients lose nothing."""
    async with supervised(ssh_spec) as stage:
        await protected(stage)
        with clients(lab, tmp_path / "history") as at_work:
            await at_work.acknowledged(20)
            await stage.checkpoints(20)
            at_s = time.monotonic()
            for victim, survivor in (("b", "a"), ("a", "b")):
                before = stage.state.generation
                kill(stage.vm(victim))
                await protected_again(stage, before)
                assert stage.primary.node == survivor
                await at_work.acknowledged(5)
                await stage.checkpoints(2)
            for node in ("a", "b"):
                assert (await switchover(stage)).survivor == node
                assert stage.state.protection is Protection.COLO
                await at_work.acknowledged(5)
            await acts.set_values(stage.state, {"checkpoint-delay": 300})
            await acts.checkpoint(stage.state)
            found = await stage.supervisor.verifying.verify(memory=True)
            assert found.outcome is VerifyOutcome.EQUAL, found
            assert found.pages is not None and found.pages.same > found.pages.pages // 2
            await at_work.acknowledged(5)
            verdicts = at_work.verdicts(at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        assert lab.bad_checksums() == 0
        assert await acts.stop(stage.state, force=False) == "guest shut down"
    left_nothing(lab)


def left_nothing(lab: Lab) -> None:
    """No process runs in either host's namespace, no port listens and no packet rule is left."""
    end = time.monotonic() + PATIENCE_S
    while running := {**netns.processes(lab.host_a), **netns.processes(lab.host_b)}:
        assert time.monotonic() < end, running
        time.sleep(0.02)
    for host in (lab.host_a, lab.host_b):
        words = ["ip", "netns", "exec", host, "ss", "-Hltunx"]
        assert not subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def file(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
    ssh_hosts: sshhost.SshHosts,
) -> Path:
    return sshhost.write_pair(tmp_path, lab, guest_image, qemu_builds("11.1"))


def coloctl(*words: str | Path, code: int = 0) -> str:
    """Type a verb, and return what it printed."""
    argv = [sys.executable, "-m", "coloctl.cli.main", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=VERB_S, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout


def view() -> dict[str, Any]:
    return dict(json.loads(coloctl("status", "web", "-f", "json")))


def test_a_supervisor_that_is_killed_is_followed_by_one_that_adopts_both(
    file: Path, lab: Lab
) -> None:
    coloctl("start", file)
    try:
        before = view()
        assert before["protection"] == "colo"
        os.kill(before["supervisor_pid"], signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while (after := view_if_served()).get("supervisor_pid") in (None, before["supervisor_pid"]):
            assert time.monotonic() < end, after
            time.sleep(0.1)
        assert after["protection"] == "colo"
        assert [n["pid"] for n in after["nodes"]] == [n["pid"] for n in before["nodes"]]
        coloctl("checkpoint", "web")
        coloctl("switchover", "web", "--yes")
        assert view()["protection"] == "colo"
        coloctl("verify", "web")
    finally:
        coloctl("stop", "web", "--yes")
    left_nothing(lab)


def view_if_served() -> dict[str, Any]:
    """What `status` shows; empty while no supervisor answers."""
    with contextlib.suppress(AssertionError):
        return view()
    return {}


async def test_both_nodes_may_be_on_one_machine_that_ssh_reaches(ssh_spec: PairSpec) -> None:
    """Their QEMUs meet at unix sockets there, and no port is opened."""
    b = ssh_spec.nodes["b"]
    nodes = {"a": replace(ssh_spec.nodes["a"], host=b.host, address="10.66.0.3"), "b": b}
    nics = tuple(replace(nic, tap=None) for nic in ssh_spec.nics)
    async with supervised(replace(ssh_spec, nodes=nodes, nics=nics)) as stage:
        await protected(stage)
        await stage.checkpoints(3)
        before = stage.state.generation
        kill(stage.primary)
        await protected_again(stage, before)
        assert (await stage.supervisor.verifying.verify(memory=True)).outcome is VerifyOutcome.EQUAL
        await acts.stop(stage.state, force=False)
